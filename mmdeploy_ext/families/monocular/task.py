"""Level 3 of a proof for boxes in 3D of one picture: match by class and place, draw both engines.

For functions and names see `tasks/__init__.py`.

Boxes (n, 9) are in the frame of the camera (x right, y down, z ahead): x, y, z of the middle of the bottom,
sizes along x, y and z before the box is turned (length, height, width), metres, yaw about y, radians (0 along
x, -pi/2 along z), and the velocity along x and z, m/s, see `decoding`.

Glossary: R results of the reference (rows), C of the candidate (columns), n boxes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.monocular.runtime.results import draw
from mmdeploy_ext.tasks import bbox2d, bbox3d, matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.families.monocular.runtime.detections import MonocularDetections
    from mmdeploy_ext.tasks.half_bars import HalfBars
    from mmdeploy_ext.tasks.matching import Pairing
    from mmdeploy_ext.tasks.results import DetectionRow, Pair

RESULTS, PLACE = 'boxes', bbox3d.PLACE
fit_pair = bbox2d.fit_pair
"""(pair) -> the pair, shrunk or enlarged to a size at which its labels are legible, to be drawn."""
SCORE_THR = 0.05
"""Score from which on every result of the reference needs a partner; one of the candidate needs it from the
bar of scores above. `matching.py` judges results of lower scores, of all pictures together."""
SCORE_BAR = 1e-4
"""Largest score difference of a matched pair."""
ONE_TO_ONE = dict(distance_bar=1e-3, other_bar=1e-3, score_bar=1e-5, score_thr=0.0)
"""Arguments of `match_detections` for results of one file's tensors, by two codes."""
PIXEL_BAR = 0.1
"""Largest difference, pixels, of the boxes of a pair in the picture."""

problem = functools.partial(matching.broken_boxes, name='boxes', columns=9)
"""(reference, candidate) -> why two lists cannot be compared; '' if they can."""


def half_bars(bars: HalfBars) -> dict[str, float]:
    """Return the bars for float16 and INT8 files, as arguments of `match_detections` and `pair_up`.

    `distance_m` counts for metres, radians and m/s alike; boxes in the picture are in effect not compared.
    """
    return dict(distance_bar=bars.distance_m, other_bar=bars.distance_m, score_bar=bars.score, pixel_bar=1e6)


def half_text(bars: HalfBars) -> str:
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
    """Pair two lists of finite detections one to one, within a class; the nearness is minus the distance.

    Args:
        reference: R boxes.
        candidate: C boxes.
        distance_bar: metres; largest distance of the middles of the volumes of a pair.
        score_bar: largest score difference of a pair.
        other_bar: largest difference of sizes (m), yaws (rad) and velocities (m/s). Yaws are compared as
            numbers, without a wrap; but two that are both this near to half a turn, where SMOKE's begin anew,
            may differ by a whole turn.
        pixel_bar: largest difference of the boxes in the picture.
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
"""Matches boxes of a picture as `matching.match_lists` does, without a look at the order of the scores."""


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """A picture (h, w, 3) uint8 BGR with the boxes of both engines side by side, PyTorch on the left."""
    return bbox2d.side_by_side(pair, classes, score_thr, draw=draw, problem=problem, pair_by=pair_up)
