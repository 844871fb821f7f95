"""Level 3 of a proof for rotated boxes: match by class and rotated IoU, draw both engines side by side.

A rectangle has four readings, a quarter turn apart (see `readings.py`), and a model gives one of them. So a
pair has to be one rectangle, by its IoU, and one reading of it. Another reading is right only where rounding
decides between two: at the ends of the interval of the angle version, and for squares.

Glossary: R results of the reference, C of the candidate, P pairs of boxes; a box is cx cy w h in pixels and
an angle in radians.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_mmrotate import readings
from mm2onnx_mmrotate.detections import corners_of
from mmdeploy_ext.families.heads import intersection_areas
from mmdeploy_ext.runtime.tasks import bbox2d

if TYPE_CHECKING:
    from mm2onnx_mmrotate.detections import RotatedDetections

RESULTS, PLACE = 'rotated boxes', 'worst IoU'
fit_pair, half_text = bbox2d.fit_pair, bbox2d.half_text
CORNER_SHARE = 1e-5
"""Share of the longer side by which corners may differ; from 500 pixels on it is more than `CORNER_EPS`.

Raised limits come with boxes far beyond the picture. Measured with Oriented R-CNN, R-50 and one class: 12 of
618 boxes found no partner, 10 of them without height and 16,000 to 421,000 pixels wide, since their widths
differed by up to 5e-6 of themselves.
"""


problem = functools.partial(bbox2d.problem, name='boxes', columns=5)
"""(reference, candidate) -> why two lists cannot be compared; '' if they can."""


def half_bars(bars: Any) -> dict[str, float]:
    """Return the bars of `pair_up` for float16 and INT8 files, which may give any reading of a rectangle."""
    return dict(bbox2d.half_bars(bars), turn_bar=readings.MOST_TURNS)


def pair_up(
    reference: RotatedDetections,
    candidate: RotatedDetections,
    iou_bar: float = bbox2d.IOU_BAR,
    score_bar: float = bbox2d.SCORE_BAR,
    turn_bar: float = 0.0,
) -> Any:
    """Pair two lists of finite detections one to one, within a class; the nearness is the rotated IoU.

    Args:
        reference: rotated boxes that PyTorch found.
        candidate: rotated boxes that the engine found.
        iou_bar: smallest IoU of a pair.
        score_bar: largest score difference of a pair.
        turn_bar: largest number of quarter turns by which the readings of a pair differ; those that rounding
            explains do not count.
    """
    turns = readings.quarter_turns(reference.boxes[:, None, 4], candidate.boxes[None, :, 4])
    are_explained = readings.is_wrap(reference.boxes[:, None], turns, reference.version)
    gaps = [('quarter turns of the angle', np.where(are_explained, 0.0, np.abs(turns)), turn_bar)]
    iou = class_iou(reference, candidate)
    return bbox2d.pair_by_iou(reference, candidate, iou, iou_bar, score_bar, gaps)


match_detections = functools.partial(bbox2d.match_detections, problem=problem, pair_by=pair_up)
draw_pair = functools.partial(bbox2d.draw_pair, problem=problem, pair_by=pair_up)


def class_iou(reference: RotatedDetections, candidate: RotatedDetections) -> np.ndarray:
    """Return the IoU (R, C) float64 of every reference with every candidate box; -1 across classes.

    It is 1 if all corners agree within `bbox2d.CORNER_EPS`, or within `CORNER_SHARE` of the longer side of
    the reference: a sliver has no area that could be measured.
    """
    boxes, candidate_boxes = reference.boxes.astype(np.float64), candidate.boxes.astype(np.float64)
    reach, candidate_reach = (np.hypot(side[:, 2], side[:, 3]) / 2 for side in (boxes, candidate_boxes))
    gap_x, gap_y = (np.subtract.outer(boxes[:, axis], candidate_boxes[:, axis]) for axis in range(2))
    distance = np.hypot(gap_x, gap_y)
    same_class = reference.labels[:, None] == candidate.labels[None]
    iou = np.where(same_class, 0.0, -1.0)
    corners, candidate_corners = corners_of(boxes), corners_of(candidate_boxes)
    areas, candidate_areas = (np.abs(side[:, 2] * side[:, 3]) for side in (boxes, candidate_boxes))
    touch = distance <= reach[:, None] + candidate_reach + bbox2d.CORNER_EPS
    rows, columns = np.nonzero(same_class & touch)
    shared = intersection_areas(corners[rows], candidate_corners[columns])
    union = areas[rows] + candidate_areas[columns] - shared
    iou[rows, columns] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    # corners that agree have centres that do: these are few pairs, of up to a million that touch
    bars = np.maximum(bbox2d.CORNER_EPS, CORNER_SHARE * np.abs(boxes[:, 2:4]).max(1, initial=0))
    rows, columns = np.nonzero(same_class & (distance <= bars[:, None]))
    agree = corner_distance(corners[rows], candidate_corners[columns]) <= bars[rows]
    iou[rows[agree], columns[agree]] = 1.0
    return iou


def corner_distance(corners: np.ndarray, candidate_corners: np.ndarray) -> np.ndarray:
    """Return the largest distance (P,) of the corners (P, 4, 2) of pairs, pixels, in the nearest reading."""
    readings = [np.roll(candidate_corners, turns, axis=1) for turns in range(4)]
    distances = [np.linalg.norm(corners - reading, axis=-1).max(1, initial=0) for reading in readings]
    return np.min(distances, axis=0)
