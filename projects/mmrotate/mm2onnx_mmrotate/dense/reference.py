"""One-stage detectors as mmrotate runs them, unpatched: what a proof compares the graphs with.

Glossary: B batch, N priors of all levels, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_mmrotate.dense.kinds import kind_of
from mm2onnx_mmrotate.dense.networks import last_head, raw_names
from mm2onnx_mmrotate.dense.settings import facts_of, generator_of
from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.min_area_kernel import min_area_polygons_on_cpu
from mm2onnx_mmrotate.readings import read_as
from mm2onnx_mmrotate.reference import RotatedReference
from mmdeploy_ext.families.images import PreparedImage
from mmdeploy_ext.runtime.detections import count_bounds


class RotatedDenseReference(RotatedReference):
    """A one-stage detector of mmrotate."""

    @property
    def version(self) -> str:
        return facts_of(last_head(self.model)).angle_version

    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        score_form: str = 'separate',
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """Return the outputs by name of the form 'raw' or 'decode', by mmrotate's own head, priors and coder.

        `feeds` hold `input` (B, 3, H, W) float32, normalised; `score_form` is the option of the file: with
        'product' the scores of the form 'decode' are multiplied by the `factors`, which are left out. Other
        options have no effect. See `decode_by_mmrotate`.

        Boxes of `decode` are in the readings of `given`, the outputs of a file, where rounding decides:
        the ways to write a rectangle, which are quarter turns apart; `readings.py` has the bars.
        """
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()).device)
            outputs = dict(zip(raw_names(self.model), upstream_outputs(self.model, image), strict=True))
            if form != 'raw':
                outputs = decode_by_mmrotate(self.model, outputs)
                if score_form == 'product' and 'factors' in outputs:
                    outputs['scores'] = outputs['scores'] * outputs.pop('factors')[..., None]
        expected, boxes = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}, given.get('boxes')
        if boxes is not None and boxes.shape == np.shape(expected.get('boxes')):
            expected['boxes'] = read_as(expected['boxes'], boxes, self.version)
        return expected

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
        with min_area_polygons_on_cpu():
            return super().results(images, rescale)

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product stores no class scores, so detections are not compared: get_bboxes applies '
            'its threshold to class scores, not to the product'
        )

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, **_: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Bounds of the number of (prior, class) pairs of the best priors that pass the threshold."""
        facts = facts_of(last_head(self.model))
        per_cell = facts.priors_per_cell
        decoded, raw = self.tensors(feeds, 'decode'), self.tensors(feeds, 'raw')
        scores = decoded['scores']
        ranks = scores * decoded['factors'][..., None] if 'factors' in decoded else scores
        cells = [np.prod(raw[f'cls_score_{level}'].shape[2:]) for level in range(len(per_cell))]
        ends = np.cumsum(np.multiply(per_cell, cells))[:-1]
        lower, upper = 0, 0
        for level_scores, level_ranks in zip(
            np.split(scores, ends, 1), np.split(ranks, ends, 1), strict=True
        ):
            if facts.nms_pre > 0:
                rows = np.argsort(-level_ranks.max(2), 1, kind='stable')[:, : facts.nms_pre]
                level_scores = np.take_along_axis(level_scores, rows[..., None], 1)
            level_lower, level_upper = count_bounds(level_scores, facts.score_thr, slack)
            lower, upper = lower + level_lower, upper + level_upper
        return dict(candidates=(lower, upper))


def upstream_outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of the last head by mmrotate's own methods, named by `raw_names`.

    The steps are those of `simple_test` of the detectors.
    """
    features, head = model.extract_feat(image), last_head(model)
    if hasattr(model, 'odm_head'):
        rois = model.fam_head.refine_bboxes(*model.fam_head(features))
        outputs = model.odm_head(model.align_conv(features, rois))
    elif hasattr(model, 'refine_head'):
        rois = model.bbox_head.filter_bboxes(*model.bbox_head(features))
        for stage in range(model.num_refine_stages):
            if stage:
                rois = model.refine_head[stage - 1].refine_bboxes(*outputs, rois=rois)
            outputs = model.refine_head[stage](model.feat_refine_module[stage](features, rois))
    else:
        return kind_of(head).flatten(model.bbox_head(features))
    maps = kind_of(head).flatten(outputs)
    sizes = [level.shape[2:] for level in outputs[0]]
    for size, boxes in zip(sizes, zip(*rois, strict=True), strict=True):
        maps.append(torch.stack(boxes).transpose(1, 2).reshape(len(boxes), 5, *size))
    return maps


def decode_by_mmrotate(model: nn.Module, raw: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of `decode` by mmrotate's own functions, level by level and image by image.

    `raw` are the outputs of the form 'raw' by name, `<name>_<level>`. The result has `boxes` (B, N, 5) x y of
    the centre (not clipped), width, height in pixels of the network input, and angle in radians; `scores`
    (B, N, C) in 0..1; and `factors` (B, N) in 0..1 if the head has some. Priors are in the order of levels,
    then rows, columns, and priors of a cell.
    """
    head = last_head(model)
    kind, generator = kind_of(head), generator_of(head)
    description = kind.describe(head)
    level_boxes, level_scores, level_factors = [], [], []
    for level in range(len(generator.strides)):
        maps = {name: raw[f'{name}_{level}'] for name in description.names}
        batch, _, *size = maps['cls_score'].shape
        rows = {
            name: maps[name].permute(0, 2, 3, 1).reshape(batch, -1, columns)
            for name, columns in description.outputs
        }
        priors = None
        if 'rois' not in rows:
            priors = generator.single_level_grid_priors(size, level, device=maps['cls_score'].device)
        image_rows = [{name: tensor[index] for name, tensor in rows.items()} for index in range(batch)]
        boxes = [
            kind.boxes(head, level, of_image, of_image['rois'] if priors is None else priors)
            for of_image in image_rows
        ]
        scores, factors = zip(*(kind.scores(head, of_image) for of_image in image_rows), strict=True)
        level_boxes.append(torch.stack(boxes))
        level_scores.append(torch.stack(scores))
        if description.factor:
            level_factors.append(torch.stack(factors))
    outputs = dict(boxes=torch.cat(level_boxes, 1), scores=torch.cat(level_scores, 1))
    if description.factor:
        outputs['factors'] = torch.cat(level_factors, 1)
    return outputs
