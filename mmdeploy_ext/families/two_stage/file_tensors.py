"""The tensors of a file between its stages, and the methods of mmdet's detectors that give them.

Glossary: B batch, K proposals, n detections of an image, C classes, m side of a mask in cells.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.substitution import PerCall, substituted
from mmdeploy_ext.families.parts.image_graphs import PROPOSALS
from mmdeploy_ext.families.parts.mask_heads import heads_of
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of_images
from mmdeploy_ext.families.parts.proposals import output_kinds
from mmdeploy_ext.families.parts.regions import (
    context_names,
    feature_names,
    flat,
    part_of,
    roi_head_of,
    stages_of,
)
from mmdeploy_ext.families.two_stage.boxes import box_borders
from mmdeploy_ext.families.two_stage.graphs import proposal_names, proposes
from mmdeploy_ext.families.two_stage.masks import mask_borders
from mmdeploy_ext.families.two_stage.panoptic import SEMANTIC
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections

SAMPLED_BOXES, SAMPLED_MASKS = 64, 8
"""Regions of an input that the user's heads look at once more, in the features of the file."""
SAME_PLACE = 1e-2
"""Largest distance, pixels, of the sides of two boxes that are one region."""


def borders(model: nn.Module) -> dict[str, Any]:
    """Return the borders of the neck and of a plain head of proposals, see `ImageFamily.borders`."""

    def features(calls: list[Any]) -> dict[str, torch.Tensor]:
        return {name: _batched(levels) for name, *levels in zip(feature_names(model), *calls, strict=False)}

    def proposed(calls: list[Any]) -> dict[str, torch.Tensor]:
        flat_calls = [[level for levels in call for level in levels] for call in calls]
        return {
            name: _batched(levels) for name, *levels in zip(proposal_names(model), *flat_calls, strict=False)
        }

    named = {'extract_feat': features}
    if proposes(model) and output_kinds(model.rpn_head) == ('cls', 'reg'):
        named['rpn_head.forward'] = proposed
    return named


def _batched(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return maps of several calls as one batch."""
    return images[0] if len(images) == 1 else torch.cat(list(images))


def substitutes(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return features, proposals and outputs of the heads of regions, see `ImageFamily.substitutes`.

    Heads whose outputs the file has pool and compute nothing. {} of a head of regions that looks at more than
    the features of regions, and of files whose proposals have no scores.
    """
    roi_head, rows = roi_head_of(model), tensors.get(PROPOSALS)
    if not proposes(model) or roi_head is None or context_names(roi_head):
        return {}
    if rows is None or rows.shape[2] != 5 or not _has(tensors, feature_names(model)):
        return {}
    given = {
        'extract_feat': [_tensor(model, tensors[name]) for name in feature_names(model)],
        'rpn_head.simple_test_rpn': [_tensor(model, of_image[_present(of_image)]) for of_image in rows],
    }
    if box_borders(roi_head) and _has(tensors, box_borders(roi_head)):
        given['roi_head._bbox_forward'] = functools.partial(_given_boxes, model, tensors)
    if mask_borders(roi_head) and _has(tensors, ('labels', *mask_borders(roi_head))):
        given['roi_head._mask_forward'] = functools.partial(_given_masks, model, tensors)
    return given


def _has(tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> bool:
    return all(name in tensors for name in names)


def _tensor(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(next(model.parameters()))


def _present(rows: np.ndarray) -> np.ndarray:
    """Return which rows (..., 5) of proposals are no padding."""
    return (rows != 0).any(-1)


def _outputs_of_stage(roi_head: nn.Module, stage: int) -> list[str]:
    """Return the names of the outputs of the box head of a stage, in order."""
    regions = f'regions_{stage}'
    return [name for name in box_borders(roi_head) if name.endswith(f'_{stage}') and name != regions]


def _given_boxes(model: nn.Module, tensors: Mapping[str, np.ndarray], *args: Any, **_: Any) -> dict[str, Any]:
    """Return the file's outputs of a box head, as `_bbox_forward([stage,] maps, rois)` of a roi_head does.

    ConfigError: they are of another number of regions.
    """
    *stage, _maps, rois = args
    present = _present(tensors[PROPOSALS])
    names = _outputs_of_stage(model.roi_head, stage[0] if stage else 0)
    scores, *deltas = (_tensor(model, tensors[name][present]) for name in names)
    if len(scores) != len(rois):
        raise ConfigError(f'roi_head._bbox_forward() got {len(rois)} regions, expected {len(scores)}')
    # None without a regression, a pair of side-aware heads
    bbox_pred = tuple(deltas) if len(deltas) > 1 else next(iter(deltas), None)
    return dict(cls_score=scores, bbox_pred=bbox_pred, bbox_feats=None)


def _given_masks(model: nn.Module, tensors: Mapping[str, np.ndarray], *args: Any, **_: Any) -> dict[str, Any]:
    """Return the file's logits of masks, as `_mask_forward([stage,] maps, rois)` of a roi_head does.

    A region has those of the file's detections at its place, each as the mask of its class; other masks are
    zero.
    """
    *stage, _maps, rois = args
    stage_index = stage[0] if stage else 0
    head, labels = part_of(model.roi_head, 'mask_head', stage_index), tensors['labels']
    logits = _tensor(model, _mask_rows(tensors, stage_index))
    regions = _tensor(model, tensors['mask_regions'])
    classes = 1 if head.class_agnostic else head.num_classes
    masks = logits.new_zeros((len(rois), classes, *logits.shape[2:]))
    for row, (image, *box) in enumerate(rois.tolist()):
        image = int(image)
        distances = (regions[image] - regions.new_tensor(box)).abs().amax(1)
        for index in (distances <= SAME_PLACE).nonzero().flatten().tolist():
            if index < labels.shape[1] and labels[image, index] >= 0:
                own_class = 0 if head.class_agnostic else int(labels[image, index])
                masks[row, own_class] = logits[image, index]
    return dict(mask_pred=masks, mask_feats=None)


def _mask_rows(tensors: Mapping[str, np.ndarray], stage: int) -> np.ndarray:
    """Return the logits of masks (B, n, m, m) of a stage; behind the detections there may be a spare row."""
    logits = tensors[f'mask_logits_{stage}']
    return logits.reshape(*tensors['mask_regions'].shape[:2], *logits.shape[2:])


def counts(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the most anchors of a level and the most proposals of an image, see `ImageFamily.counts`."""
    prefix = 'rpn.' if roi_head_of(model) else ''
    found = {}
    if proposes(model) and output_kinds(model.rpn_head) == ('cls', 'reg'):
        deltas = [tensors[name] for name in proposal_names(model) if name in tensors and '_reg_' in name]
        if deltas:
            found[f'{prefix}nms_pre'] = max(level[0].size // 4 for level in deltas)
    if prefix and PROPOSALS in tensors and tensors[PROPOSALS].shape[2] == 5:
        found[f'{prefix}max_per_img'] = int(_present(tensors[PROPOSALS]).sum(1).max())
    return found


def inner_tensors(
    model: nn.Module, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the outputs of the heads of regions for some of the file's regions, see `ImageFamily`."""
    given = substitutes(model, tensors)
    expected: dict[str, np.ndarray] = {}
    actual: dict[str, np.ndarray] = {}
    if 'roi_head._bbox_forward' in given and _present(tensors[PROPOSALS]).any():
        rows = _some(_present(tensors[PROPOSALS]), SAMPLED_BOXES)
        for stage in range(stages_of(model.roi_head)):
            regions = tensors[f'regions_{stage}'] if stage else tensors[PROPOSALS][..., :4]
            result = _run_head(model, '_bbox_forward', stage, given['extract_feat'], regions, rows)
            outputs = flat((result['cls_score'], result['bbox_pred']))
            for name, output in zip(_outputs_of_stage(model.roi_head, stage), outputs, strict=True):
                expected[name], actual[name] = output.numpy(force=True), tensors[name][rows]
    if 'roi_head._mask_forward' in given and (tensors['labels'] >= 0).any():
        rows = _some(tensors['labels'] >= 0, SAMPLED_MASKS)
        for stage, head in enumerate(heads_of(model.roi_head)):
            regions, name = tensors['mask_regions'], f'mask_logits_{stage}'
            result = _run_head(model, '_mask_forward', stage, given['extract_feat'], regions, rows)
            masks = result['mask_pred'].numpy(force=True)
            own_classes = 0 if head.class_agnostic else tensors['labels'][rows]
            expected[name] = masks[np.arange(len(masks)), own_classes]
            actual[name] = _mask_rows(tensors, stage)[rows]
    return expected, actual


def _some(chosen: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Return image and row of up to `count` of the chosen (B, K) bool, evenly spread."""
    places = np.argwhere(chosen)
    indices = np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)
    return tuple(places[indices].T)


def _run_head(
    model: nn.Module,
    method: str,
    stage: int,
    maps: Sequence[torch.Tensor],
    boxes: np.ndarray,
    rows: tuple[np.ndarray, ...],
) -> dict[str, Any]:
    """Run a method of the roi_head on rows, image and index, of boxes (B, K, 4)."""
    rois = _tensor(model, np.concatenate([rows[0][:, None], boxes[rows]], axis=1))
    run: Callable[..., dict[str, Any]] = getattr(model.roi_head, method)
    with torch.no_grad():
        if hasattr(model.roi_head, 'num_stages'):
            return run(stage, maps, rois)
        return run(maps, rois)


def inner_results(
    model: nn.Module, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
) -> list[tuple[Detections, Detections]]:
    """Return proposals by mmdet's head of the maps of a file, and those of the file, for each image."""
    names, rows = proposal_names(model), tensors.get(PROPOSALS)
    if not proposes(model) or output_kinds(model.rpn_head) != ('cls', 'reg') or roi_head_of(model) is None:
        return []
    if rows is None or rows.shape[2] != 5 or not _has(tensors, names):
        return []
    maps = [_tensor(model, tensors[name]) for name in names]
    levels = len(maps) // 2
    with torch.no_grad(), substituted(model, {'rpn_head.forward': (maps[:levels], maps[levels:])}):
        proposals = model.rpn_head.simple_test_rpn(None, metas_of_images(images, rescale=True))
    sides = [
        ([boxes.cpu().numpy()], [of_image[_present(of_image)]])
        for boxes, of_image in zip(proposals, rows, strict=True)
    ]
    return [(boxes_of_classes(reference), boxes_of_classes(own)) for reference, own in sides]


def panoptic_substitutes(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return features, proposals and logits of stuff of a file, image by image, as `segments` runs them."""
    given, stuff = substitutes(model, tensors), tensors.get(SEMANTIC)
    if not given or stuff is None:
        return {}
    maps, count = given['extract_feat'], len(stuff)
    logits = _tensor(model, stuff)
    return {
        'extract_feat': PerCall([level[index : index + 1] for level in maps] for index in range(count)),
        'rpn_head.simple_test_rpn': PerCall([rows] for rows in given['rpn_head.simple_test_rpn']),
        'semantic_head.forward': PerCall(dict(seg_preds=logits[index : index + 1]) for index in range(count)),
    }
