"""Recorded results of every generation of OpenMMLab as those of mmdet 2.28 and mmdet3d 1.0.0rc6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.detections3d import in_lidar_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

ARRAYS = np.ndarray | torch.Tensor
CORNERS_M = 1e-4
"""Largest difference of recorded corners from those of the right convention, relative to the range."""


def as_mmdet2(recorded: Any, own: Any, model: torch.nn.Module) -> Any:
    """Return a recorded result in the form of `own`, the result of the model here."""
    if not isinstance(recorded, list | tuple) or len(recorded) != len(own):
        raise DataError(f'the recorded result has {len(recorded)} samples, expected {len(own)}')
    samples = []
    for there, here in zip(recorded, own, strict=True):
        samples.append(_sample(there, here, model))
        _check_form(samples[-1], here)
    return type(own)(samples) if isinstance(own, list | tuple) else samples


def _sample(recorded: Any, own: Any, model: torch.nn.Module) -> Any:
    if isinstance(recorded, dict) and 'pred_instances_3d' in recorded and len(recorded['pred_instances_3d']):
        instances = recorded['pred_instances_3d']
        recorded = {name.replace('bboxes_3d', 'boxes_3d'): value for name, value in instances.items()}
        if 'pts_bbox' in own:
            recorded = dict(pts_bbox=recorded)
    elif isinstance(recorded, dict) and 'pred_panoptic_seg' in recorded:
        return dict(own, pan_results=np.asarray(recorded['pred_panoptic_seg']['sem_seg'])[0])
    elif isinstance(recorded, dict) and 'pred_instances' in recorded:
        return _by_class(recorded['pred_instances'], own)
    if isinstance(recorded, dict):
        return _with_boxes(recorded, model)
    return recorded


def _check_form(recorded: Any, own: Any) -> None:
    """Refuse results without an entry that `own` has, such as masks: it would not be compared."""
    if isinstance(own, dict):
        absent = [key for key in own if not isinstance(recorded, dict) or key not in recorded]
        if absent:
            raise DataError(f'the recorded result has no {", ".join(map(str, absent))}, expected {[*own]}')
        for key, value in own.items():
            if isinstance(value, ARRAYS | dict):
                _check_form(recorded[key], value)
    elif isinstance(own, ARRAYS):
        _check_shape(recorded, own)
    elif isinstance(own, list | tuple):
        if not isinstance(recorded, list | tuple) or len(recorded) != len(own):
            count = len(recorded) if isinstance(recorded, list | tuple) else type(recorded).__name__
            raise DataError(
                f'the recorded result has {count} entries, expected {len(own)} (classes, or boxes and masks)'
            )
        for there, here in zip(recorded, own, strict=True):
            if isinstance(own, tuple) or isinstance(here, ARRAYS):
                _check_form(there, here)


def _check_shape(recorded: Any, own: np.ndarray | torch.Tensor) -> None:
    """Refuse another number of axes or columns; the number of rows is compared later."""
    got = tuple(recorded.shape) if isinstance(recorded, ARRAYS) else type(recorded).__name__
    if isinstance(got, str) or len(got) != own.ndim or got[1:] != tuple(own.shape[1:]):
        raise DataError(f'the recorded result has {got}, expected {tuple(own.shape)}')


def _by_class(instances: Mapping[str, torch.Tensor], own: Any) -> Any:
    """mmdet 3's `InstanceData` as lists per class: of rows (n, 5), and of masks if the model has them."""
    rows = np.concatenate([instances['bboxes'].numpy(), instances['scores'].numpy()[:, None]], 1)
    if isinstance(own, np.ndarray):  # proposals
        return rows
    boxes_own = own[0] if isinstance(own, tuple) else own
    labels = instances['labels'].numpy()
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(boxes_own)):
        raise DataError(
            f'the recorded labels are {labels.min()} to {labels.max()}, expected {len(boxes_own)} classes'
        )
    of_class = [labels == index for index in range(len(boxes_own))]
    boxes = [rows[chosen] for chosen in of_class]
    if not isinstance(own, tuple):
        return boxes
    if 'masks' not in instances:
        raise DataError('the recorded result has no masks, the model here has')
    if isinstance(own[1], tuple):
        raise DataError(
            'the recorded scores are those of masks, as Mask Scoring R-CNN of mmdet 3 gives them; the model '
            'here has scores of boxes, too: give it a model without mask_iou_head on both sides'
        )
    masks = np.asarray(instances['masks'])
    for own_mask in (mask for of_own_class in own[1] for mask in of_own_class):
        # RTMDet-Ins of mmdet 3 leaves out rows and columns that end outside of the input
        missing = np.maximum(np.subtract(own_mask.shape, masks.shape[1:]), 0)
        masks = np.pad(masks, [(0, 0), *((0, count) for count in missing)])
        break
    return boxes, [list(masks[chosen]) for chosen in of_class]


def _with_boxes(result: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    changed = dict(result)
    for name, value in result.items():
        if name == 'boxes_3d':
            rows = value['tensor'].float()
            ours = getattr(model, 'box_convention', '') or '1.x'
            theirs = convention_of(value) or ours
            if theirs != ours:
                raise DataError(
                    f'the recorded boxes are boxes of mmdet3d {theirs}, expected {ours}, as the file decodes '
                    f"them: write box_convention = '{theirs}' into the config, and export again"
                )
            changed[name] = LiDARInstance3DBoxes(rows, box_dim=rows.shape[-1], with_yaw=rows.shape[-1] > 6)
        elif isinstance(value, dict):
            changed[name] = _with_boxes(value, model)
    return changed


def convention_of(boxes: Mapping[str, Any]) -> str:
    """Return '1.x' or '0.17', whichever reading of the columns has the recorded corners; '': no boxes.

    DataError: neither has.
    """
    if 'corners' not in boxes:
        return ''
    rows, corners = boxes['tensor'].double().numpy(), boxes['corners'].double().numpy()
    readings = {'1.x': rows, '0.17': in_lidar_columns(rows)}
    misses = {name: _miss(corners, corners_of(reading)) for name, reading in readings.items()}
    name = min(misses, key=misses.__getitem__)
    scale = max(float(np.abs(corners).max()), 1.0)
    if not misses[name] <= CORNERS_M * scale:
        raise DataError(
            f'the recorded corners are {misses[name]:.2g} m away from those of our reading of the boxes: '
            f'this box convention is not known'
        )
    return name


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return corners (n, 8, 3) of boxes (n, 7 or more) of mmdet3d 1.x: bottom center, l, w, h, yaw."""
    signs = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (0, 1)])
    places = signs * boxes[:, None, 3:6]
    cosine, sine = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x, y, z = np.moveaxis(places, -1, 0)
    return np.stack([x * cosine - y * sine, x * sine + y * cosine, z], -1) + boxes[:, None, :3]


def _miss(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest distance, per axis, of a corner to the nearest of the same box."""
    between = np.abs(first[:, :, None] - second[:, None]).max(-1)
    return float(between.min(2).max())
