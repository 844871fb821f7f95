"""SOLO, Decoupled SOLO and SOLOv2 as mmdet runs them, unpatched.

Source: mmdet 2.28.2 `models/dense_heads/{solo_head,solov2_head}.py` and `core/post_processing/matrix_nms.py`.
Glossary: B batch, C classes, g grid of a level.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mmdeploy_ext.families.common.mmdet_reference import given_to, instances_of_classes, metas_of, tested
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.solo.graphs import RAW_NAMES, fork_is_flat, fork_names, kind, logit_names
from mmdeploy_ext.families.solo.networks import flat_cells, points_nms, resize
from mmdeploy_ext.runtime.detections import Instances, count_bounds
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

TIE = 1e-6
"""Scores that differ by at most this decide points NMS by rounding."""


class SoloReference(ImageReference):
    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        layout: str = 'batched',
        **_: Any,
    ) -> dict[str, np.ndarray]:
        head = self.model.mask_head
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()).device)
            scores, *rest = _by_mmdet(head, self.model.extract_feat(image))
        named = arrange(head, scores, rest, layout)
        named = {name: tensor.cpu().numpy() for name, tensor in named.items()}
        if form == 'raw' and all(name in given for name in logit_names(head)):
            levels = [torch.from_numpy(np.array(given[name])) for name in logit_names(head)]
            expected = flat_cells([points_nms(level) for level in levels]).numpy()
            scores = flat_cells([level.sigmoid() for level in levels]).numpy()
            tied = flat_cells([ties(level) for level in levels]).numpy()
            either = np.where(np.asarray(given['cate_pred']) != 0, scores, 0)  # as the file decided
            named['cate_pred'] = np.where(tied, either, expected)
        return named

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
        instances = []
        for result, image in zip(tested(self.model, images, metas_of(images), rescale), images, strict=True):
            of_image = instances_of_classes(*result, tuple(image.ori_shape))
            instances.append(Instances(of_image.masks.astype(bool), of_image.scores, of_image.labels))
        return instances

    def full_size(self, image: PreparedImage) -> tuple[int, int]:
        return tuple(-(-side // 8) * 8 for side in image.tensor.shape[1:])

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, **_: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        scores = self.tensors(feeds, 'raw')['cate_pred']
        return dict(candidates=count_bounds(scores, float(self.model.mask_head.test_cfg.score_thr), slack))

    def borders(self) -> dict[str, Any]:
        head = self.model.mask_head

        def outputs(calls: list[Any]) -> dict[str, torch.Tensor]:
            if kind(head) == 'SOLOV2Head':
                return dict(kernel_pred=flat_cells(calls[0][0]), seg_pred=calls[0][2])
            return {
                name: torch.cat(list(levels), dim=1)
                for name, levels in zip(RAW_NAMES[kind(head)][1:], calls[0][:-1], strict=True)
            }

        return {
            'mask_head.conv_cls.forward': lambda calls: dict(zip(logit_names(head), calls, strict=True)),
            'mask_head.forward': outputs,
        }

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        head, given = self.model.mask_head, given_to(self.model, tensors, tensors)
        if any(name not in given for name in logit_names(head)):
            return {}
        logits = [given[name] for name in logit_names(head)]
        grids = [int(grid) for grid in head.num_grids]
        rest = [given[name] for name in RAW_NAMES[kind(head)][1:] if name in given]
        scores = [points_nms(level) for level in logits]
        if kind(head) == 'SOLOV2Head' and len(rest) == 2:
            cells = rest[0].transpose(1, 2).split([grid**2 for grid in grids], 2)
            kernels = [level.unflatten(2, (grid, grid)) for level, grid in zip(cells, grids, strict=True)]
            return {'extract_feat': None, 'mask_head.forward': (kernels, logits, rest[1])}
        if rest and kind(head) != 'SOLOV2Head':
            rows = [grid**2 for grid in grids] if kind(head) == 'SOLOHead' else grids
            return {
                'extract_feat': None,
                'mask_head.forward': (*(list(masks.split(rows, 1)) for masks in rest), scores),
            }
        features = [given[name] for level in range(len(grids)) if (name := f'mask_feat_{level}') in given]
        if len(features) < len(grids):
            return {}
        size = tuple(features[0].shape[2:])
        masks = [
            resize(conv(level).sigmoid(), size)
            for conv, level in zip(head.conv_mask_list, features, strict=True)
        ]
        return {'extract_feat': None, 'mask_head.forward': (masks, scores)}


def ties(logits: torch.Tensor) -> torch.Tensor:
    """Cells of logits (B, C, g, g) whose score, and the best before it, differ by rounding alone."""
    scores = functional.pad(logits.sigmoid(), (1, 0, 1, 0))
    rivals = torch.stack([scores[..., :-1, :-1], scores[..., :-1, 1:], scores[..., 1:, :-1]]).amax(0)
    return (rivals - scores[..., 1:, 1:]).abs() <= TIE


def arrange(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any], layout: str
) -> dict[str, torch.Tensor]:
    """Name the outputs of mmdet's head as a `raw` graph, in the layout 'batched' or 'fork'.

    `scores` are per level (B, C, g, g) after points NMS; `rest` lists masks or kernels per level, then
    SOLOv2's features.
    """
    if layout == 'fork':
        last = [level.permute(0, 2, 3, 1) for level in scores]
        if fork_is_flat(head):
            outputs = [*flat_cells(scores).unbind(0), *flat_cells(rest[0]).unbind(0), rest[1]]
        elif kind(head) == 'SOLOV2Head':
            outputs = [*last, *rest[0], rest[1]]
        else:
            outputs = [*(level for levels in rest for level in levels), *last]
        return dict(zip(fork_names(head, len(scores[0])), outputs, strict=True))
    if kind(head) == 'SOLOV2Head':
        flat = [flat_cells(rest[0]), rest[1]]
    else:
        flat = [torch.cat(list(levels), dim=1) for levels in rest]
    return dict(zip(RAW_NAMES[kind(head)], [flat_cells(scores), *flat], strict=True))


def _by_mmdet(head: nn.Module, pyramid: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outputs = head(pyramid)
    if kind(head) == 'SOLOV2Head':
        kernels, logits, features = outputs
        return [points_nms(level) for level in logits], kernels, features
    return outputs[-1], *outputs[:-1]
