"""Parts of synthetic outputs of a head: scores about thresholds, headings about the ends of a turn.

Values are distinct and away from what rounding decides, so that both engines have to give the same boxes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

FROM_WRAP = (1e-3, 2e-3, 4e-3, 6e-3)
"""Radians between headings and the end of a turn, before it and behind it."""
SHARES = (0.004, 0.01, 0.03, 0.1)
"""Distances of scores below and above a threshold, relative to it."""
HIGH = 0.5, 0.95
"""Range of scores that pass every threshold of a model."""


def headings(count: int, rng: np.random.Generator, ends: Sequence[float] = (np.pi,)) -> np.ndarray:
    """Return headings (count,), radians: most of them on both sides of the `ends`, the rest anywhere."""
    near = [end + sign * gap for end in ends for gap in FROM_WRAP for sign in (-1, 1)]
    anywhere = rng.uniform(-3, 3, max(count // 4, 1))
    return rng.permutation(np.resize([*near, *near, *near, *anywhere], count))


def scores_about(thresholds: Sequence[float], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return distinct scores (count,) below and above each threshold, which is in 0..1."""
    inner = [value for value in thresholds if 0 < value < 1] or [0.1]
    about = [value * (1 + sign * share) for value in inner for share in SHARES for sign in (-1, 1)]
    rest = np.linspace(*HIGH, max(count - len(about), 1))
    return rng.permutation(np.clip([*about, *rest], 1e-4, 0.99)[:count])


def logits(scores: np.ndarray) -> np.ndarray:
    """Return the logits of scores in 0..1, float32."""
    return (np.log(scores) - np.log1p(-np.asarray(scores, np.float64))).astype(np.float32)


def about_limits(low: float, high: float) -> list[float]:
    """Return places inside and outside of a range, near to both of its ends."""
    step = 0.004 * (high - low)
    return [low - step, low + step, high - step, high + step]


@functools.cache  # asked for each box
def clear_size(threshold: float, choices: tuple[int, ...] = (3, 4, 5, 6)) -> int:
    """Return the side, in cells, of squares on a grid whose overlaps are furthest from an IoU."""

    def clearance(side: int) -> float:
        steps = np.arange(side)
        common = np.multiply.outer(side - steps, side - steps)[1:]
        return float(np.abs(common / (2 * side**2 - common) - threshold).min())

    return max(choices, key=clearance)
