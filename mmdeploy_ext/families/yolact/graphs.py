"""The graph of YOLACT: fast suppression, prototypes times coefficients, cropped and resized.

Source: mmdet 2.28.2 `dense_heads/yolact_head.py` and `fast_nms` of `core/post_processing/bbox_nms.py`.
Glossary: B batch, A priors, C classes, P prototypes, n results, H, W network input in pixels, hp, wp size of
the prototypes, h, w size of the results.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.mask_resize import resizing
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    clip_to,
    gather_rows,
    limit,
    number,
    positive,
    rows_of,
)
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.dense_heads import border_inset, chosen_coder, clips, plain_head
from mmdeploy_ext.families.common.image_graphs import (
    box_outputs,
    clip_size,
    image_input,
    mask_inputs,
    optional_inputs,
)
from mmdeploy_ext.families.yolact.facts import YolactFacts
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.nms import pairwise_iou
from mmdeploy_ext.upstream.operators.operator import hw

HEAD_OUTPUTS = ('cls', 'reg', 'coeff')
FULL_NAMES = ('dets', 'labels', 'masks')
EDGE = 1.0
"""Cells by which a crop exceeds its box on every side."""
MASK_THR = 0.5
"""Exclusive probability threshold of a pixel."""


class YolactNetwork(nn.Module):
    """Backbone, neck, head and prototypes with flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        levels = range(len(model.bbox_head.prior_generator.strides))
        self.names = ('prototypes', *(f'{name}_{level}' for name in HEAD_OUTPUTS for level in levels))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return prototypes (B, P, hp, wp) and the head's maps, by output."""
        maps = self.model.extract_feat(image)
        head_maps = [level for levels in self.model.bbox_head(maps) for level in levels]
        outputs = self.model.mask_head.protonet(maps[0]), *head_maps
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))


def facts_of(head: nn.Module) -> YolactFacts:
    test_cfg = head.test_cfg
    return YolactFacts(
        score_thr=number('score_thr', test_cfg.get('score_thr'), float),
        iou_thr=number('iou_thr', test_cfg.get('iou_thr'), float),
        mask_thr=MASK_THR,
        nms_pre=number('nms_pre', test_cfg.get('nms_pre', -1), int),
        top_k=positive('top_k', test_cfg.get('top_k')),
        max_per_img=positive('max_per_img', test_cfg.get('max_per_img')),
        num_classes=int(head.num_classes),
    )


def fast_suppression(
    boxes: torch.Tensor, scores: torch.Tensor, facts: YolactFacts
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Suppress, in every class, boxes by all better ones, also by suppressed ones.

    `boxes` are (B, A, 4) xyxy, `scores` (B, A, C) without background. Returns scores, labels and rows of
    priors (B, n), best first; n is `max_per_img`, padding has the score `NO_CANDIDATE`.
    """
    best, rows = scores.transpose(1, 2).topk(limit(facts.top_k, scores.shape[1]), 2)
    best_boxes = gather_rows(boxes, rows.flatten(1)).reshape(*rows.shape, 4)
    ranks = torch.arange(rows.shape[2], device=rows.device)
    overlaps = (pairwise_iou(best_boxes.flatten(0, 1)) > facts.iou_thr) & (ranks[:, None] < ranks)
    suppressed = overlaps.to(best.dtype).amax(1).reshape(best.shape)
    passes = (suppressed < 0.5) & (best > facts.score_thr)
    best = torch.where(passes, best, torch.full_like(best, NO_CANDIDATE)).flatten(1)
    result_scores, order = best.topk(facts.max_per_img, 1)
    labels = torch.arange(rows.shape[1], device=rows.device)[None, :, None].expand_as(rows)
    return result_scores, labels.flatten(1).gather(1, order), rows.flatten(1).gather(1, order)


class YolactFullForm(nn.Module):
    """The form `full`."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.priors, self.facts = head.prior_generator, facts_of(head)
        self.head, self.coder = plain_head(head), chosen_coder(head)
        columns = [columns for _, columns in self.head.outputs]
        self.columns = dict(cls_score=columns[0], bbox_pred=columns[1], coefficients=int(head.num_protos))
        self.clips, self.inset = clips(head), border_inset(head)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        ori_shape: torch.Tensor,
        prototypes: torch.Tensor,
        *maps: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5), labels (B, n) and masks (B, n, h, w) bool; padding has label -1.

        Dets are xyxy, pixels of the originals, and score, best first.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            ori_shape: (2,) int64 h, w of the results; 0 means the input size.
            prototypes: (B, P, hp, wp).
            maps: `HEAD_OUTPUTS` in turn, each of every level.
        """
        clip_hw, scale = clip_size(image, img_shape), scale_factor[:, None]
        boxes, scores, weights = (torch.cat(levels, 1) for levels in zip(*self._levels(maps), strict=True))
        boxes = (clip_to(boxes, clip_hw, self.inset) if self.clips else boxes) / scale
        best, labels, rows = fast_suppression(boxes, scores, self.facts)
        present, boxes = best > NO_CANDIDATE, gather_rows(boxes, rows)
        dets = torch.cat([boxes, best[..., None]], 2)
        relative = boxes * scale / clip_hw.flip(1).repeat(1, 2)[:, None]
        target = torch.where(ori_shape > 0, ori_shape, hw(image).to(ori_shape))
        masks = masks_of(prototypes, gather_rows(weights, rows), relative, target)
        outputs = (
            torch.where(present[..., None], dets, torch.zeros_like(dets)),
            torch.where(present, labels, torch.full_like(labels, -1)),
            masks & present[..., None, None],
        )
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, outputs, strict=True))

    def _levels(self, maps: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
        num_levels = len(maps) // len(HEAD_OUTPUTS)
        for level in range(num_levels):
            level_maps = zip(self.columns.items(), maps[level::num_levels], strict=True)
            rows = {name: rows_of(tensor, columns) for (name, columns), tensor in level_maps}
            scores, (height, width) = self.head.class_scores(torch, rows), maps[level].shape[2:]
            priors = self.priors.single_level_grid_priors((height, width), level, device=scores.device)
            if self.facts.nms_pre > 0:
                count = limit(self.facts.nms_pre, scores.shape[1])
                best = scores.amax(2).topk(count, 1)[1]
                rows = {name: gather_rows(tensor, best) for name, tensor in rows.items()}
                scores, priors = gather_rows(scores, best), priors[best]
            yield self.coder.boxes(torch, priors, rows, level), scores, rows['coefficients']


def masks_of(
    prototypes: torch.Tensor, weights: torch.Tensor, relative: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Return masks (B, n, h, w) bool of prototypes (B, P, hp, wp) and their weights (B, n, P).

    They are cropped to boxes `relative` (B, n, 4) xyxy plus `EDGE`: shares of the image without padding,
    taken for shares of the prototypes as mmdet does; then resized bilinearly to `target` (2,) int64, h, w.
    """
    size = hw(prototypes)
    probabilities = (weights @ prototypes.flatten(2)).sigmoid()
    probabilities = probabilities.reshape(
        probabilities.shape[0], probabilities.shape[1], prototypes.shape[2], prototypes.shape[3]
    )
    columns = _inside(relative[..., 0::2], size[1])
    rows = _inside(relative[..., 1::2], size[0])
    probabilities = probabilities * (rows[..., None] * columns[:, :, None])
    row_weights, column_weights = (resizing(size[axis], target[axis]) for axis in (0, 1))
    return row_weights @ (probabilities @ column_weights.T) > MASK_THR


def _inside(span: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    cells = torch.arange(size, dtype=span.dtype, device=span.device)
    low = (span[..., :1] * size - EDGE).clamp(min=0)
    high = torch.minimum(span[..., 1:] * size + EDGE, size.to(span.dtype))
    return ((cells >= low) & (cells < high)).to(span.dtype)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    image = image_input(options, smallest=1, multiple=detector_parts.multiple(model))
    batch, rows = image.axes[0], facts_of(model.bbox_head).max_per_img
    meaning = 'masks of the instances at ori_shape'
    masks = TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), meaning, compare='detections')
    _, ori_shape = mask_inputs(batch, '0 means the input size')
    inputs = (image, *optional_inputs(batch, clips=True), ori_shape)
    return GraphSpec('yolact/full', inputs, (*box_outputs(batch, rows), masks))


def stages(model: nn.Module, options: Options) -> list[Stage]:
    network = YolactNetwork(model)
    inputs = ('input', 'img_shape', 'scale_factor', 'ori_shape', *network.names)
    return [
        Stage('network', network, ('input',), network.names),
        Stage('postprocess', YolactFullForm(model.bbox_head), inputs, FULL_NAMES),
    ]
