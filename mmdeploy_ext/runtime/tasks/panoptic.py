"""Panoptic maps: segments are matched one to one, by class, number and IoU."""

from __future__ import annotations

import functools

import numpy as np

from mmdeploy_ext.runtime.panoptic import OFFSET, Segments
from mmdeploy_ext.runtime.tasks import mask
from mmdeploy_ext.runtime.tasks.mask import fit_pair
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.matching import Pairing

__all__ = [
    'ONE_TO_ONE',
    'PLACE',
    'RESULTS',
    'draw_pair',
    'fit_pair',
    'half_bars',
    'half_text',
    'match_detections',
    'pair_up',
]
ONE_TO_ONE = mask.ONE_TO_ONE
"""Arguments of `match_detections` for two programs on equal tensors."""
RESULTS, PLACE = 'segments', 'worst IoU'
half_bars, half_text = matching.overlap_bars, matching.overlap_text


def pair_up(
    reference: Segments,
    candidate: Segments,
    iou_bar: float = mask.IOU_BAR,
    score_bar: float = mask.SCORE_BAR,
) -> Pairing:
    """Pair the segments of two maps one to one, within a class; nearness is the IoU of their pixels.

    In float32 class and number must agree; a missing thing counts once, see `numbers_of_both`.
    """
    iou = mask.class_iou(reference, candidate)
    near = iou >= iou_bar
    if iou_bar >= mask.IOU_BAR:
        near &= np.equal.outer(*numbers_of_both(reference, candidate, iou))
    return matching.pair_lists(reference, candidate, near, iou, mask.PAIR_IOU, score_bar)


def numbers_of_both(
    reference: Segments, candidate: Segments, iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers (R,) and (C,) of segments, except things in only one map.

    Segments share no pixel: two with over half of their pixels in common are equal.
    """
    in_both = iou > mask.PAIR_IOU
    numbers = []
    for side, axis in ((reference, 1), (candidate, 0)):
        of_side = side.ids // OFFSET
        alone = np.sort(of_side[~in_both.any(axis) & (of_side > 0)])
        numbers.append(of_side - np.searchsorted(alone, of_side))
    return numbers[0], numbers[1]


draw_pair = functools.partial(mask.draw_pair, pair_by=pair_up)
match_detections = functools.partial(mask.match_detections, pair_by=pair_up)
