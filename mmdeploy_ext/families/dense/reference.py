"""Dense heads as mmdet runs them, unpatched: what a proof compares the graphs with.

The heads of the models are those that `forms.described` describes; others were refused before.

Glossary: B batch, N priors of all levels, C classes without the background, H, W network input in pixels.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract.dense_head import PRIOR_CHOICES
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.dense.graphs import described, flat_outputs, raw_names
from mmdeploy_ext.families.dense.heads import generator_of, kind_of, thresholds
from mmdeploy_ext.families.parts.mmdet_reference import box_detections, given_to
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, count_bounds


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, score_form: str = 'separate', **_: Any
) -> dict[str, np.ndarray]:
    """Return the outputs by name of the form 'raw' or 'decode', by mmdet's own head, priors and box coder.

    `feeds` hold `input` (B, 3, H, W) float32, the `PreparedImage.tensor` of each image; `score_form` is the
    option of the file: with 'product' the scores of the form 'decode' are multiplied by the head's score
    factor, which is left out. Other options have no effect. The outputs are those of `decode_by_mmdet`, or
    the maps that it takes.
    """
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        outputs = dict(zip(raw_names(model), flat_outputs(model, image), strict=True))
        if form != 'raw':
            return _decoded(model, outputs, score_form)
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def _decoded(
    model: nn.Module, raw: Mapping[str, torch.Tensor], score_form: str = 'separate', **_: Any
) -> dict[str, np.ndarray]:
    """Return the outputs of the form 'decode' of the maps of a head, see `tensors`."""
    outputs, factor = decode_by_mmdet(model, raw), described(model).factor
    if score_form == 'product' and factor:
        outputs['scores'] = outputs['scores'] * outputs.pop(factor)[..., None]
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def decode_by_mmdet(model: nn.Module, raw: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of `decode` by mmdet's own functions, level by level and image by image.

    `raw` are the outputs of the form 'raw' by name: `<name>_<level>` (B, priors of a cell * columns, h, w).

    Returns:
        `boxes` (B, N, 4) x1 y1 x2 y2 in pixels of the network input, not clipped; `scores` (B, N, C) in 0..1,
        0 in cells of a heatmap that are no peak, -1 where guided anchors place none; the score factor (B, N)
        in 0..1 under its name, such as `centerness`, if the head has one; `level_sizes`, int64, the number of
        priors of each level, if the sizes of the maps do not follow from the strides. Priors are in the order
        of levels, then rows, columns, and priors of a cell.
    """
    head, kind, description = model.bbox_head, kind_of(model.bbox_head), described(model)
    generator = generator_of(head)
    level_boxes, level_scores, level_factors = [], [], []
    for level in range(len(generator.strides)):
        maps = kind.maps(head, {name: raw[f'{name}_{level}'] for name in description.names})
        batch, _, *size = maps[description.names[0]].shape
        priors = generator.single_level_grid_priors(size, level, device=maps[description.names[0]].device)
        rows = {
            name: maps[name].permute(0, 2, 3, 1).reshape(batch, -1, columns)
            for name, columns in description.outputs
        }
        image_rows = [{name: tensor[index] for name, tensor in rows.items()} for index in range(batch)]
        level_boxes.append(
            torch.stack([kind.boxes(head, level, of_image, priors) for of_image in image_rows])
        )
        scores, factors = zip(*(kind.scores(head, of_image, priors) for of_image in image_rows), strict=True)
        level_scores.append(torch.stack(scores))
        if description.factor:
            level_factors.append(torch.stack(factors))
    outputs = dict(boxes=torch.cat(level_boxes, 1), scores=torch.cat(level_scores, 1))
    if description.factor:
        outputs[description.factor] = torch.cat(level_factors, 1)
    if not description.maps_by_stride:
        outputs['level_sizes'] = torch.tensor([boxes.shape[1] for boxes in level_boxes])
    return outputs


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path, with `deploy_nms_pre`, if set, as `nms_pre`.

    There is one for each of the images; with `rescale` boxes are in pixels of the originals, else of the
    network input. Heads that are `bordered` subtract the padding above and left of the image in either case,
    so that their coordinates begin at its corner, not at that of the input.

    Rows that are no results are left out: boxes without an area if boxes vote, for which upstream divides
    zero by zero, and those of score 0, by which upstream fills up a list of peaks. The images are of one
    size.
    """
    test_cfg, description = model.bbox_head.test_cfg, described(model)
    deployed = contextlib.nullcontext()
    if (nms_pre := test_cfg.get('deploy_nms_pre')) is not None:
        deployed = replaced_entry(test_cfg, 'nms_pre', nms_pre if nms_pre > 0 else sys.maxsize)
    with deployed:
        image_detections = box_detections(model, images, rescale)
    if description.votes:
        return [
            of_image[~(np.isnan(of_image.bboxes_xyxy).any(1) | np.isnan(of_image.scores))]
            for of_image in image_detections
        ]
    if description.peaks:
        return [of_image[of_image.scores > 0] for of_image in image_detections]
    return image_detections


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **_: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return 'candidates' -> least and largest number (B,) of (prior, class) pairs that pass the threshold.

    A score that differs from its threshold by no more than `slack`, or an objectness (YOLOv3) from its
    own, may pass or not. Of each level those count that `contract.dense_head.Head.choose` lets
    through, with 'best' one per prior; the best `nms_pre` priors are those of this run, also where ranks
    differ by rounding. `feeds` hold `input` as for `tensors`; limits of the file are not used.
    """
    config, description = thresholds(model.bbox_head), described(model)
    generator = generator_of(model.bbox_head)
    decoded = tensors(model, feeds, 'decode')
    scores, factor = decoded['scores'], decoded.get(description.factor)
    ranks = scores if factor is None else scores * factor[..., None]
    if description.root:
        ranks = np.sqrt(np.maximum(ranks, 0))
    judged = ranks if description.judged == 'product' else scores
    by_class = description.choose == 'class_priors'
    prior_ranks = factor if description.choose == 'factor_priors' else (scores if by_class else ranks).max(2)
    nms_pre = config.nms_pre if config.nms_pre > 0 else np.iinfo(np.int64).max

    raw, name = tensors(model, feeds, 'raw'), description.names[0]
    cells = [
        int(np.prod(raw[f'{name}_{level}'].shape[2:])) for level in range(len(generator.num_base_priors))
    ]
    ends = np.cumsum(np.multiply(generator.num_base_priors, cells))[:-1]
    counts = []
    for bound, step in enumerate((slack, -slack)):
        passing, count = judged, 0
        if description.conf_thr > 0:
            passing = np.where(factor[..., None] >= description.conf_thr + step, judged, -1)
        for level_judged, level_ranks in zip(
            np.split(passing, ends, 1), np.split(prior_ranks, ends, 1), strict=True
        ):
            if description.choose == 'best':
                level_judged = level_judged.max(2)
            elif description.choose in PRIOR_CHOICES:
                rows = np.argsort(-level_ranks, 1, kind='stable')[:, :nms_pre]
                level_judged = np.take_along_axis(level_judged, rows[..., None], 1)
            level_count = count_bounds(level_judged, config.score_thr, slack)[bound]
            if description.choose == 'pairs':
                level_count = np.minimum(level_count, nms_pre)
            count = count + level_count
        counts.append(count)
    return dict(candidates=tuple(counts))


def substitutes(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the head's `forward` returns by the maps of a file; nothing else reads the features."""
    maps = raw_maps(model, tensors)
    outputs = maps and kind_of(model.bbox_head).unflatten(model.bbox_head, list(maps.values()))
    return {'extract_feat': None, 'bbox_head.forward': outputs} if outputs else {}


def expected_tensors(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    form: str,
    **options: Any,
) -> dict[str, np.ndarray] | None:
    """Return the tensors of the form `decode` by mmdet's functions, of the maps of the file."""
    maps = raw_maps(model, tensors)
    if form != 'decode' or not maps:
        return None
    with torch.no_grad():
        return _decoded(model, maps, **options)


def raw_maps(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the maps of a head among the tensors of a file by name, in the order of `raw_names`; or {}."""
    return given_to(model, tensors, raw_names(model))
