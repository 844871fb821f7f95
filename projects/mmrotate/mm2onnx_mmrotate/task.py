"""Matching and drawing of rotated boxes: the largest distance of their corners decides."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mm2onnx_mmrotate.draw import draw
from mmdeploy_ext.proving.tasks import bbox2d, matching

RESULTS, PLACE = 'rotated boxes', 'worst Δpx'
PIXEL_BAR, SCORE_BAR, FLOOR = 0.05, 1e-4, -20.0
fit_pair = bbox2d.fit_pair
problem = functools.partial(matching.broken_boxes, 'boxes', 5)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 4, 2) of boxes (n, 5)."""
    x, y, width, height, angle = boxes.astype(np.float64).T
    along = np.stack([np.cos(angle), np.sin(angle)], -1) * width[:, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], -1) * height[:, None] / 2
    centre = np.stack([x, y], -1)
    return np.stack([centre - along - across, centre + along - across, centre + along + across,
                     centre - along + across], 1)  # fmt: skip


def pair_up(
    reference: Any, candidate: Any, pixel_bar: float = PIXEL_BAR, score_bar: float = SCORE_BAR
) -> matching.Pairing:
    """Pair two lists of results."""
    sides = corners_of(reference.boxes)[:, None], corners_of(candidate.boxes)[None]
    turns = [np.abs(sides[0] - np.roll(sides[1], turn, 2)).max((-1, -2)) for turn in range(4)]
    pixels = np.min(turns, 0)
    pixels[reference.labels[:, None] != candidate.labels[None]] = np.inf
    return matching.pair_lists(reference, candidate, pixels <= pixel_bar, -pixels, FLOOR, score_bar)


def figures(pairing: matching.Pairing, worst: Callable[..., float]) -> tuple[dict[str, float], str]:
    """Return the worst distance."""
    return dict(worst_distance=worst(-pairing.nearness)), f'{worst(-pairing.nearness):.2g} pixels'


match_detections = functools.partial(
    matching.match_lists,
    problem=problem,
    pair_by=pair_up,
    figures=figures,
    score_thr=0.05,
    score_bar=SCORE_BAR,
)
draw_pair = functools.partial(bbox2d.side_by_side, draw=draw, problem=problem, pair_by=pair_up)
