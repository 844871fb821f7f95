"""3D boxes: matched by class and place, drawn for both engines."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.geometry import box_corners
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.results import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.runtime.bird_eye import BoxLayer
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Sweep
    from mmdeploy_ext.spec.matching import Pairing
    from mmdeploy_ext.spec.results import Bars, DetectionRow

RESULTS, PLACE = 'boxes', 'worst Δm'
SCORE_THR = 0.1
"""From this score on results need a partner; lower ones are judged over the whole proof."""
DISTANCE_BAR = 0.01
"""Metres between the centres of a matched pair."""
SCORE_BAR = 1e-3
SIZE_BAR, YAW_BAR, VELOCITY_BAR = 0.01, 0.01, 0.01
"""Largest differences of a pair: size (metres), yaw (radians, modulo a turn), velocity (m/s)."""
ONE_TO_ONE = dict(distance_bar=1e-4, corner_bar=1e-4, score_bar=1e-5, score_thr=0.0)
"""Arguments of `match_detections` for two programs on equal tensors."""
PAIR_DISTANCE = 1.0
"""Metres between the centres of one object outside the bars."""


def half_bars(bars: Bars) -> dict[str, float]:
    return dict(distance_bar=bars.distance_m, corner_bar=bars.distance_m, score_bar=bars.score)


def half_text(bars: Bars) -> str:
    return f'{bars.distance_m} m (corners, too)'


problem = functools.partial(matching.broken_boxes, name='boxes', columns=9)


def pair_up(
    reference: Detections3D,
    candidate: Detections3D,
    distance_bar: float = DISTANCE_BAR,
    score_bar: float = SCORE_BAR,
    corner_bar: float | None = None,
    further: Sequence[tuple[str, Callable[..., np.ndarray], float]] = (),
    rounding: Mapping[str, np.ndarray] | None = None,
) -> Pairing:
    """Pair two lists of finite detections one to one, within a class; nearness is minus the distance.

    `distance_bar` is in metres. `corner_bar` (metres between corners, m/s of velocities) replaces the float32
    bars of size, yaw and velocity. `further` has titles, functions of rows and columns, and bars; for
    `rounding` see `matching.pair_lists`.
    """
    nearness = _nearness(reference, candidate)
    close = np.nonzero(nearness >= -max(distance_bar, PAIR_DISTANCE))
    gaps = []
    others = [(title, function(*close), bar) for title, function, bar in further]
    for title, difference, bar in [*_other_gaps(reference, candidate, close, corner_bar), *others]:
        gap = np.full(nearness.shape, np.inf)
        gap[close] = difference
        gaps.append((title, gap, bar))
    near = nearness >= -distance_bar
    return matching.pair_lists(
        reference, candidate, near, nearness, -PAIR_DISTANCE, score_bar, gaps, rounding
    )


def _nearness(reference: Detections3D, candidate: Detections3D) -> np.ndarray:
    centres, candidate_centres = boxes_centre(reference.boxes), boxes_centre(candidate.boxes)
    nearness = np.full((len(centres), len(candidate_centres)), -np.inf)
    for label in np.unique(reference.labels):
        rows = np.flatnonzero(reference.labels == label)
        columns = np.flatnonzero(candidate.labels == label)
        gap = centres[rows][:, None] - candidate_centres[columns][None]
        nearness[np.ix_(rows, columns)] = -np.linalg.norm(gap, axis=-1)
    return nearness


def figures(pairing: Pairing, worst: Callable[..., float]) -> tuple[dict[str, Any], str]:
    distance = worst(-pairing.nearness)
    gaps = ', '.join(f'{title} {worst(gap):.2g}' for title, gap in pairing.gaps.items())
    return dict(worst_distance=distance), f'worst: distance {distance:.2g} m, {gaps}'


match_lists = functools.partial(
    matching.match_lists,
    problem=problem,
    pair_by=pair_up,
    figures=figures,
    score_thr=SCORE_THR,
    score_bar=SCORE_BAR,
)


def match_detections(
    image: str, reference: Detections3D, candidate: Detections3D, **settings: Any
) -> DetectionRow:
    """Match two lists of boxes; the candidate's must descend by score."""
    row = match_lists(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)


def boxes_centre(boxes: np.ndarray) -> np.ndarray:
    """Return the centres (n, 3) float64 of boxes (n, 9) with z of the bottom."""
    centre = boxes[:, :3].astype(np.float64)
    centre[:, 2] += boxes[:, 5].astype(np.float64) / 2
    return centre


def _other_gaps(
    reference: Detections3D,
    candidate: Detections3D,
    pairs: tuple[np.ndarray, np.ndarray],
    corner_bar: float | None = None,
) -> list[tuple[str, np.ndarray, float]]:
    rows, columns = pairs
    difference = reference.boxes.astype(np.float64)[rows] - candidate.boxes.astype(np.float64)[columns]
    gap = np.abs(difference)
    velocity = gap[:, 7:9].max(axis=-1)
    if corner_bar is not None:
        corners, candidate_corners = box_corners(reference.boxes), box_corners(candidate.boxes)
        corner = np.linalg.norm(corners[rows] - candidate_corners[columns], axis=-1).max(axis=-1)
        return [('corner', corner, corner_bar), ('velocity', velocity, corner_bar)]
    turns = np.abs((difference[:, 6] + np.pi) % (2 * np.pi) - np.pi)
    size = gap[:, 3:6].max(axis=-1)
    return [('size', size, SIZE_BAR), ('yaw', turns, YAW_BAR), ('velocity', velocity, VELOCITY_BAR)]


def pair_of(
    frame: Frame | Sweep, rule: Any, title: str, reference: Any, candidate: Any, engine: str = 'ONNX Runtime'
) -> Pair:
    """Return a pair to draw: a frame's camera images, or its points."""
    points, images = getattr(frame, 'points', None), getattr(frame, 'images', None)
    if images is None:
        return Pair(title, points, reference, candidate, engine)
    from mmdeploy_ext.runtime.draw3d import in_drawn_order

    views = getattr(rule, 'views', rule)
    pixels = images.transpose(0, 2, 3, 1) * np.float32(views.std) + np.float32(views.mean)
    pictures = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    pictures = np.ascontiguousarray(pictures[..., ::-1] if views.to_rgb else pictures)
    pictures, lidar2img = in_drawn_order(pictures, frame.lidar2img, getattr(views, 'cameras', ()))
    return Pair(title, pictures, reference, candidate, engine, lidar2img, points)


def fit_pair(pair: Pair) -> Pair:
    """Return the pair unchanged; `draw_layers` scales images."""
    return pair


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    from mmdeploy_ext.runtime.bird_eye import BoxLayer

    sides = (pair.reference, pair.candidate), matching.alone(pair, problem, pair_up)
    layers = [
        BoxLayer(title, detections.above(score_thr), lonely[detections.scores >= score_thr])
        for title, detections, lonely in zip(('PyTorch', pair.engine), *sides, strict=True)
    ]
    return draw_layers(pair, layers, classes)


def draw_layers(pair: Pair, layers: Sequence[BoxLayer], classes: Sequence[str]) -> np.ndarray:
    from mmdeploy_ext.runtime.draw3d import compare_picture, sweep_picture

    if pair.lidar2img is None:
        return sweep_picture(pair.title, pair.background, layers, classes)
    return compare_picture(pair.background, pair.lidar2img, layers, classes, pair.title, pair.points)
