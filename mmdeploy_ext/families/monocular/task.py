"""Level 3 of a proof for boxes in 3D of one picture: match by class and place, draw both engines.

Boxes are in the frame of the camera, see `decoding`. A pair has equal attributes, and boxes in the picture
that agree. The reference is PyTorch, the candidate an engine.

Glossary: R results of the reference (rows), C of the candidate (columns), n boxes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.monocular.runtime.results import draw
from mmdeploy_ext.proving.tasks import bbox2d, bbox3d, matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.families.monocular.runtime.detections import MonocularDetections
    from mmdeploy_ext.proving.half_bars import HalfBars
    from mmdeploy_ext.proving.results import DetectionRow, Pair
    from mmdeploy_ext.proving.tasks.matching import Pairing

RESULTS, PLACE = 'boxes', bbox3d.PLACE
fit_pair = bbox2d.fit_pair
SCORE_THR = 0.05
"""Score from which on every result needs a partner; those below are judged over the whole proof."""
SCORE_BAR = 1e-4
"""Largest score difference of a matched pair."""
PIXEL_BAR = 0.1
"""Largest difference, pixels, of the boxes of a pair in the picture."""

problem = functools.partial(matching.broken_boxes, 'boxes', 9)
"""(reference, candidate) -> why two lists cannot be compared; '' if they can."""


def half_bars(bars: HalfBars) -> dict[str, float]:
    """Return the bars of `pair_up` for float16 and INT8 files."""
    return dict(distance_bar=bars.distance_m, other_bar=bars.distance_m, score_bar=bars.score, pixel_bar=1e6)


half_text = bbox3d.half_text


def pair_up(
    reference: MonocularDetections,
    candidate: MonocularDetections,
    distance_bar: float = bbox3d.DISTANCE_BAR,
    score_bar: float = SCORE_BAR,
    other_bar: float = bbox3d.SIZE_BAR,
    pixel_bar: float = PIXEL_BAR,
) -> Pairing:
    """Pair two lists of finite detections one to one, within a class; the nearness is minus the distance.

    Args:
        reference: R boxes.
        candidate: C boxes.
        distance_bar: metres; largest distance of the centres of a pair.
        score_bar: largest score difference of a pair.
        other_bar: largest difference of sizes (m), yaws (rad) and velocities (m/s). Two yaws that are both
            this near to half a turn, where SMOKE's begin anew, may differ by a whole turn.
        pixel_bar: largest difference of the boxes in the picture.
    """
    rows, columns = (side.boxes.astype(np.float64) for side in (reference, candidate))
    difference = rows[:, None] - columns[None]
    places = difference[..., :3].copy()
    places[..., 1] -= difference[..., 4] / 2  # of the middles of the volumes; y is that of the bottom
    nearness = -np.linalg.norm(places, axis=-1)
    nearness[reference.labels[:, None] != candidate.labels[None]] = -np.inf
    turns = np.abs(difference[..., 6])
    near_seam, other_near_seam = (
        np.abs(np.pi - np.abs(side[:, 6])) <= other_bar for side in (rows, columns)
    )
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
    """Return the largest differences (R, C) of rows of two lists; infinite if only one side has them."""
    if first is None and second is None:
        return np.zeros(shape)
    if first is None or second is None:
        return np.full(shape, np.inf)
    gap = np.abs(first[:, None].astype(np.float64) - second[None].astype(np.float64))
    return gap.max(-1) if gap.ndim == 3 else gap


def match_detections(
    image: str, reference: MonocularDetections, candidate: MonocularDetections, **settings: Any
) -> DetectionRow:
    """Match boxes of a picture by the bars of `pair_up`; the candidate's have to be in order of their scores.

    `image` is a name for the row, `settings` are further keyword arguments of `matching.match_lists`.
    """
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
"""Matches boxes of the same picture as `matching.match_lists` does."""


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' boxes of at least `score_thr` side by side, see `bbox2d.side_by_side`."""
    return bbox2d.side_by_side(pair, classes, score_thr, draw=draw, problem=problem, pair_by=pair_up)
