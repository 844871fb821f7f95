"""Level 3 of a proof for boxes in 3D: match by class and place, draw both engines.

Glossary: R reference detections (rows), C candidate detections (columns), N cameras.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proof.results import DetectionRow, Pair
from mmdeploy_ext.proof.tasks import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmdeploy_ext.proof.tasks.matching import Pairing
    from mmdeploy_ext.runtime.bird_eye import Layer
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Sweep

SCORE_THR = 0.1
DISTANCE_BAR = 0.01
"""Metres; largest distance of the centres of a matched pair."""
SCORE_BAR = 1e-3
"""Largest score difference of a matched pair."""
SIZE_BAR, YAW_BAR, VELOCITY_BAR = 0.01, 0.01, 0.01
"""Metres, radians (modulo a turn) and m/s; the other values of a matched pair."""
PAIR_DISTANCE = 1.0
"""Metres. Boxes outside the bars are a (failing) pair up to here; farther they are missing and extra."""
COLUMNS = 9


def match_detections(
    name: str,
    reference: Detections3D,
    candidate: Detections3D,
    *,
    score_thr: float = SCORE_THR,
    distance_bar: float = DISTANCE_BAR,
    score_bar: float = SCORE_BAR,
    corner_bar: float | None = None,
    capacity: int | None = None,
    near_ties: Callable[[], Iterable[Detections3D]] | None = None,
) -> DetectionRow:
    """Match two lists of detections of one frame one to one, within a class, whatever their order.

    The rules are those of boxes in images (`bbox2d.match_detections`): the matching within the bars is of
    maximum size; every reference box of at least `score_thr` has to be matched; every candidate of at least
    `score_thr + score_bar` needs a partner; boxes that were swapped at the cut of two full lists are ties.
    What replaces the IoU are bars for the centre, the sizes, the yaw and the velocity.

    Args:
        name: of the frame, for the row.
        reference: of the unpatched model, LiDAR frame.
        candidate: of the engine on trial, LiDAR frame.
        score_thr: see above.
        distance_bar: metres; largest distance of the centres of a matched pair.
        score_bar: largest score difference of a matched pair.
        corner_bar: see `pair_up`.
        capacity: detections that both engines keep at most per frame (`max_num`).
        near_ties: see `bbox2d.match_detections`.

    Returns:
        The row; its `worst_distance` is in metres, its `worst_iou` says nothing here and is 1.
    """
    problem = _broken('reference', reference) or _broken('candidate', candidate)
    if problem:
        return DetectionRow(name, len(reference), 0, len(reference), len(candidate), 1.0, 1.0, False, problem)
    bars = dict(distance_bar=distance_bar, score_bar=score_bar, corner_bar=corner_bar)
    pair = functools.partial(pair_up, **bars)
    pairing = pair(reference, candidate)
    tied = near_ties and (lambda: matching.near_ties_of(near_ties(), reference, candidate, pair))
    scores = reference.scores, candidate.scores
    found = matching.tally(pairing, scores, score_thr, score_bar, capacity, None, tied)
    distance = found.worst(-pairing.nearness, 0.0)
    score = found.worst(pairing.score_gap, 0.0)
    gaps = _other_gaps(reference, candidate, corner_bar)
    others = [f'{title} {found.worst(gap, 0.0):.2g}' for title, gap, _ in gaps]
    reason = matching.reason(
        found, f'worst: distance {distance:.2g} m, score {score:.2g}, {", ".join(others)}'
    )
    return DetectionRow(
        image=name,
        reference=found.needed,
        matched=found.matched,
        missing=found.missing,
        extra=found.extra,
        worst_iou=1.0,
        worst_score=score,
        passed=not reason,
        reason=reason,
        outside=found.outside,
        worst_distance=distance,
        ties=found.ties,
    )


def pair_up(
    reference: Detections3D,
    candidate: Detections3D,
    distance_bar: float = DISTANCE_BAR,
    score_bar: float = SCORE_BAR,
    corner_bar: float | None = None,
) -> Pairing:
    """Pair two lists of finite detections one to one, within a class; the nearness is minus the distance.

    Args:
        reference: R boxes.
        candidate: C boxes.
        distance_bar: metres; largest distance of the centres of a pair.
        score_bar: largest score difference of a pair.
        corner_bar: metres; largest distance of corners, and in m/s of velocities, in place of the bars of
            float32 for sizes, yaw and velocity.
    """
    nearness = -np.linalg.norm(
        boxes_centre(reference.boxes)[:, None] - boxes_centre(candidate.boxes)[None], axis=-1
    )
    nearness[reference.labels[:, None] != candidate.labels[None]] = -np.inf
    score_gap = matching.score_gaps(reference.scores, candidate.scores)
    allowed = (nearness >= -distance_bar) & (score_gap <= score_bar)
    for _, gap, bar in _other_gaps(reference, candidate, corner_bar):
        allowed &= gap <= bar
    return matching.pair_lists(allowed, nearness, score_gap, reference.scores, -PAIR_DISTANCE)


def boxes_centre(boxes: np.ndarray) -> np.ndarray:
    """Return the centres of the volumes (n, 3) float64 of boxes (n, 9), whose z is the bottom's."""
    centre = boxes[:, :3].astype(np.float64)
    centre[:, 2] += boxes[:, 5].astype(np.float64) / 2
    return centre


def _other_gaps(
    reference: Detections3D, candidate: Detections3D, corner_bar: float | None = None
) -> list[tuple[str, np.ndarray, float]]:
    """Return title, largest absolute difference (R, C) and bar of sizes, yaw and velocity, or of corners."""
    one, two = reference.boxes[:, None].astype(np.float64), candidate.boxes[None].astype(np.float64)
    gap = np.abs(one - two)
    turns = np.abs((one[..., 6] - two[..., 6] + np.pi) % (2 * np.pi) - np.pi)
    if corner_bar is not None:
        here, there = (_corners(boxes.boxes) for boxes in (reference, candidate))
        far = np.linalg.norm(here[:, None] - there[None], axis=-1).max(axis=-1)
        return [('corner', far, corner_bar), ('velocity', gap[..., 7:9].max(axis=-1), corner_bar)]
    return [
        ('size', gap[..., 3:6].max(axis=-1), SIZE_BAR),
        ('yaw', turns, YAW_BAR),
        ('velocity', gap[..., 7:9].max(axis=-1), VELOCITY_BAR),
    ]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 8, 3) float64 of boxes (n, 9), in an order that turns with the box."""
    signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing='ij'), -1).reshape(8, 3)
    length, width, height = boxes[:, None, 3:6].astype(np.float64).transpose(2, 0, 1)
    x, y, z = length * signs[:, 0], width * signs[:, 1], height * signs[:, 2]
    cos, sin = np.cos(boxes[:, None, 6], dtype=np.float64), np.sin(boxes[:, None, 6], dtype=np.float64)
    turned = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)
    return boxes_centre(boxes)[:, None] + turned


def _broken(side: str, detections: Detections3D) -> str:
    return matching.broken(side, detections.boxes, detections.scores, detections.labels, COLUMNS)


def pair_of(
    frame: Frame | Sweep, rule: Any, title: str, reference: Any, candidate: Any, engine: str = 'ONNX Runtime'
) -> Pair:
    """Return what is drawn of a frame: pictures of its cameras, as the network saw them, or its points.

    Args:
        frame: what both engines saw.
        rule: how it was prepared.
        title: of the picture.
        reference: detections of PyTorch.
        candidate: of the other engine.
        engine: its name.
    """
    points, images = getattr(frame, 'points', None), getattr(frame, 'images', None)
    if images is None:
        return Pair(title, points, reference, candidate, engine)
    seen = getattr(rule, 'views', rule)
    pixels = images.transpose(0, 2, 3, 1) * np.float32(seen.std) + np.float32(seen.mean)
    pictures = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    pictures = np.ascontiguousarray(pictures[..., ::-1] if seen.to_rgb else pictures)
    return Pair(title, pictures, reference, candidate, engine, frame.lidar2img, points)


def fit_pair(pair: Pair) -> Pair:
    """Return the pair as it is: the mosaic scales its cameras itself."""
    return pair


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' boxes; see `draw_layers`.

    Boxes without an equal on the other side, by the bars of `match_detections`, are drawn in white.

    Args:
        pair: images and calibration, or points, and both lists.
        classes: names by label.
        score_thr: boxes below are left out.

    Returns:
        (h, w, 3) uint8 BGR.
    """
    return draw_layers(pair, layers_of(pair, score_thr), classes)


def draw_layers(pair: Pair, layers: Sequence[Layer], classes: Sequence[str]) -> np.ndarray:
    """Draw lists of boxes over what a pair shows, (h, w, 3) uint8 BGR.

    Of cameras: a mosaic for each list, and one view from above with all. Of points alone: the view from
    above for each list, side by side.

    Args:
        pair: what is shown; its own detections are not drawn.
        layers: lists of boxes.
        classes: names by label.
    """
    from mmdeploy_ext.runtime.draw3d import compare_picture, sweep_picture

    if pair.lidar2img is None:
        return sweep_picture(pair.title, pair.shown, layers, classes)
    return compare_picture(pair.shown, pair.lidar2img, layers, classes, pair.title, pair.points)


def layers_of(pair: Pair, score_thr: float) -> list[Layer]:
    """Return both engines' boxes of at least `score_thr`, marked where they have no equal."""
    from mmdeploy_ext.runtime.bird_eye import Layer

    sides = (pair.reference, pair.candidate), matching.alone(pair, _broken, pair_up)
    return [
        Layer(title, detections.above(score_thr), lonely[detections.scores >= score_thr])
        for title, detections, lonely in zip(('PyTorch', pair.engine), *sides, strict=True)
    ]
