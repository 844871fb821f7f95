"""3D boxes of one picture in a proof: match by class and place, draw both engines (see `tasks/__init__.py`).

Boxes (n, 9) and the camera's frame are defined in `decoding`.
Glossary: R results of the reference (rows), C of the candidate (columns), n boxes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.families.monocular.runtime.decoding import MonocularDetections, draw
from mmdeploy_ext.runtime.tasks import bbox2d, bbox3d
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.matching import Pairing
from mmdeploy_ext.spec.results import Bars, DetectionRow, Pair

RESULTS, PLACE = 'boxes', bbox3d.PLACE
fit_pair = bbox2d.fit_pair
"""(pair) -> the pair, scaled to a size with legible labels."""
SCORE_THR = 0.05
"""A reference result from this score on needs a partner; a candidate from this plus the score bar."""
SCORE_BAR = 1e-4
ONE_TO_ONE = dict(distance_bar=1e-3, other_bar=1e-3, score_bar=1e-5, score_thr=0.0)
PIXEL_BAR = 0.1
"""Largest difference of a pair's 2D boxes, pixels."""

problem = functools.partial(matching.broken_boxes, name='boxes', columns=9)
"""(reference, candidate) -> why two lists cannot be compared, or ''."""


def half_bars(bars: Bars) -> dict[str, float]:
    """Return arguments of `match_detections` and `pair_up` for float16 and INT8 files.

    `distance_m` is also the bar of radians and m/s; 2D boxes are in effect not compared.
    """
    return dict(distance_bar=bars.distance_m, other_bar=bars.distance_m, score_bar=bars.score, pixel_bar=1e6)


def half_text(bars: Bars) -> str:
    bar = bars.distance_m
    return f'{bar} m (sizes, too, yaws within {bar} rad and velocities within {bar} m/s)'


def pair_up(
    reference: MonocularDetections,
    candidate: MonocularDetections,
    distance_bar: float = bbox3d.DISTANCE_BAR,
    score_bar: float = SCORE_BAR,
    other_bar: float = bbox3d.SIZE_BAR,
    pixel_bar: float = PIXEL_BAR,
) -> Pairing:
    """Pair R and C finite detections one to one, within a class, the nearest first.

    Args:
        reference: R boxes.
        candidate: C boxes.
        distance_bar: largest distance of the middles, metres.
        score_bar: largest score difference.
        other_bar: largest difference of sizes (m), yaws (rad) and velocities (m/s). Yaws do not wrap, but two
            this near to half a turn may differ by a whole turn.
        pixel_bar: largest difference of 2D boxes.
    """
    rows, columns = (side.boxes.astype(np.float64) for side in (reference, candidate))
    difference = rows[:, None] - columns[None]
    places = difference[..., :3].copy()
    places[..., 1] -= difference[..., 4] / 2  # of the middles of the volumes; y is that of the bottom
    nearness = -np.linalg.norm(places, axis=-1)
    nearness[reference.labels[:, None] != candidate.labels[None]] = -np.inf
    turns = np.abs(difference[..., 6])
    near_seam, other_near_seam = (np.abs(np.pi - np.abs(side[:, 6])) <= other_bar for side in (rows, columns))
    at_seam = near_seam[:, None] & other_near_seam[None]
    turns[at_seam] = np.abs((difference[..., 6][at_seam] + np.pi) % (2 * np.pi) - np.pi)
    gaps = [
        ('size', np.abs(difference[..., 3:6]).max(-1), other_bar),
        ('yaw', turns, other_bar),
        ('velocity', np.abs(difference[..., 7:]).max(-1), other_bar),
        ('attribute', _gap(reference.attributes, candidate.attributes, nearness.shape) != 0, 0.0),
        ('pixels', _gap(reference.bboxes_xyxy, candidate.bboxes_xyxy, nearness.shape), pixel_bar),
    ]
    gaps = [(title, gap.astype(np.float64), bar) for title, gap, bar in gaps]
    near = nearness >= -distance_bar
    return matching.pair_lists(reference, candidate, near, nearness, -bbox3d.PAIR_DISTANCE, score_bar, gaps)


def _gap(first: np.ndarray | None, second: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if first is None and second is None:
        return np.zeros(shape)
    if first is None or second is None:
        return np.full(shape, np.inf)
    gap = np.abs(first[:, None].astype(np.float64) - second[None].astype(np.float64))
    return gap.max(-1) if gap.ndim == 3 else gap


def match_detections(
    image: str, reference: MonocularDetections, candidate: MonocularDetections, **settings: Any
) -> DetectionRow:
    row = match_lists(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)


match_lists = functools.partial(
    matching.match_lists,
    problem=problem,
    pair_by=pair_up,
    figures=bbox3d.figures,
    score_thr=SCORE_THR,
    score_bar=SCORE_BAR,
)
"""As `matching.match_lists`, whatever the order of the scores."""


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' boxes side by side, PyTorch left: (h, w, 3) uint8 BGR."""
    return bbox2d.side_by_side(pair, classes, score_thr, draw=draw, problem=problem, pair_by=pair_up)
