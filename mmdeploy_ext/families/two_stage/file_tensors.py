"""The tensors of a file between its stages in place of results of methods of mmdet's detectors.

Glossary: B batch, K proposals, n detections of an image, C classes, m side of a mask in cells.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.image_graphs import PROPOSALS
from mmdeploy_ext.families.common.mmdet_reference import given_to
from mmdeploy_ext.families.common.regions import context_names, feature_names, part_of, roi_head_of
from mmdeploy_ext.families.two_stage.boxes import box_borders
from mmdeploy_ext.families.two_stage.graphs import proposes
from mmdeploy_ext.families.two_stage.masks import mask_borders

SAMPLED_BOXES, SAMPLED_MASKS = 64, 8
"""Regions that the user's heads look at again in the file's features."""
SAME_PLACE = 1e-2
"""Largest distance of the sides of equal regions, pixels."""


def given_to_heads(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    roi_head, rows = roi_head_of(model), tensors.get(PROPOSALS)
    if not proposes(model) or roi_head is None or context_names(roi_head):
        return {}
    features = [*given_to(model, tensors, feature_names(model)).values()]
    if rows is None or rows.shape[2] != 5 or not features:
        return {}
    given = {
        'extract_feat': features,
        'rpn_head.simple_test_rpn': [as_tensor(model, of_image[present_rows(of_image)]) for of_image in rows],
    }
    if box_borders(roi_head) and tensors.keys() >= set(box_borders(roi_head)):
        given['roi_head._bbox_forward'] = functools.partial(given_boxes, model, tensors)
    if mask_borders(roi_head) and tensors.keys() >= {'labels', *mask_borders(roi_head)}:
        given['roi_head._mask_forward'] = functools.partial(given_masks, model, tensors)
    return given


def as_tensor(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(next(model.parameters()))


def present_rows(rows: np.ndarray) -> np.ndarray:
    return (rows != 0).any(-1)


def outputs_of_stage(roi_head: nn.Module, stage: int) -> list[str]:
    regions = f'regions_{stage}'
    return [name for name in box_borders(roi_head) if name.endswith(f'_{stage}') and name != regions]


def given_boxes(model: nn.Module, tensors: Mapping[str, np.ndarray], *args: Any, **_: Any) -> dict[str, Any]:
    *stage, _maps, rois = args
    present = present_rows(tensors[PROPOSALS])
    names = outputs_of_stage(model.roi_head, stage[0] if stage else 0)
    scores, *deltas = (as_tensor(model, tensors[name][present]) for name in names)
    if len(scores) != len(rois):
        raise ConfigError(f'roi_head._bbox_forward() got {len(rois)} regions, expected {len(scores)}')
    # None without a regression, a pair of side-aware heads
    bbox_pred = tuple(deltas) if len(deltas) > 1 else next(iter(deltas), None)
    return dict(cls_score=scores, bbox_pred=bbox_pred, bbox_feats=None)


def given_masks(model: nn.Module, tensors: Mapping[str, np.ndarray], *args: Any, **_: Any) -> dict[str, Any]:
    """Stand in for `_mask_forward([stage,] maps, rois)`: the file's masks at the same places."""
    *stage, _maps, rois = args
    stage_index = stage[0] if stage else 0
    head, labels = part_of(model.roi_head, 'mask_head', stage_index), tensors['labels']
    logits = as_tensor(model, mask_rows(tensors, stage_index))
    regions = as_tensor(model, tensors['mask_regions'])
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


def mask_rows(tensors: Mapping[str, np.ndarray], stage: int) -> np.ndarray:
    """Return a stage's mask logits (B, n, m, m); the last row may be spare."""
    logits = tensors[f'mask_logits_{stage}']
    return logits.reshape(*tensors['mask_regions'].shape[:2], *logits.shape[2:])


def spread_rows(chosen: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Return images and rows of up to `count` entries of `chosen` (B, K) bool, evenly spread."""
    places = np.argwhere(chosen)
    indices = np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)
    return tuple(places[indices].T)


def run_head(
    model: nn.Module,
    method: str,
    stage: int,
    maps: Sequence[torch.Tensor],
    boxes: np.ndarray,
    rows: tuple[np.ndarray, ...],
) -> dict[str, Any]:
    """Run a method of the roi_head on (image, index) rows of boxes (B, K, 4)."""
    rois = as_tensor(model, np.concatenate([rows[0][:, None], boxes[rows]], axis=1))
    run: Callable[..., dict[str, Any]] = getattr(model.roi_head, method)
    with torch.no_grad():
        if hasattr(model.roi_head, 'num_stages'):
            return run(stage, maps, rois)
        return run(maps, rois)
