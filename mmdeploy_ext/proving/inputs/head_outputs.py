"""Parts of synthetic outputs of a head: scores near thresholds, headings near -pi and pi.

Values are so far from the thresholds that rounding decides nothing, and scores are distinct: both engines
have to give the same boxes. Scores are so if thresholds are below `HIGH` and above 1.2e-4, and no two of them
are nearer than `SHARES` are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

FROM_WRAP = (1e-3, 2e-3, 4e-3, 6e-3)
"""Radians between headings and an angle at which they wrap, before it and behind it."""
SHARES = (0.004, 0.01, 0.03, 0.1)
"""Distances of scores below and above a threshold, relative to it."""
HIGH = 0.5, 0.95
"""Range of scores that pass thresholds below it."""
SIDES = 3, 4, 5, 6
"""Cells: sides of squares, one of which `clear_size` chooses."""


def headings(count: int, rng: np.random.Generator, ends: Sequence[float] = (np.pi,)) -> np.ndarray:
    """Return headings (count,) float64 in radians: some near `ends`, on both sides, others in -3..3.

    All are near one if `count` is at most 24 for each end; of more, at most 96 for each end are. Those
    behind an end of pi are larger than pi.
    """
    near = [end + sign * gap for end in ends for gap in FROM_WRAP for sign in (-1, 1)]
    anywhere = rng.uniform(-3, 3, max(count // 4, 1))
    return rng.permutation(np.resize([*near, *near, *near, *anywhere], count))


def scores_about(thresholds: Sequence[float], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scores (count,) in random order, below and above each of `thresholds` that is inside 0..1.

    8 are near each of them, near 0.1 if none is inside; the rest is spread over `HIGH`. All are clipped to
    1e-4..0.99. Of a `count` below 8 for each threshold only the first ones are there.
    """
    inner = [value for value in thresholds if 0 < value < 1] or [0.1]
    about = [value * (1 + sign * share) for value in inner for share in SHARES for sign in (-1, 1)]
    rest = np.linspace(*HIGH, max(count - len(about), 1))
    return rng.permutation(np.clip([*about, *rest], 1e-4, 0.99)[:count])


def logits(scores: np.ndarray) -> np.ndarray:
    """Return the logits of scores between 0 and 1, both excluded, float32."""
    return (np.log(scores) - np.log1p(-np.asarray(scores, np.float64))).astype(np.float32)


def about_limits(low: float, high: float) -> list[float]:
    """Return four ascending values, one outside and one inside of the range near each of its ends.

    They are 0.4 % of the range away from the end.
    """
    step = 0.004 * (high - low)
    return [low - step, low + step, high - step, high + step]


@functools.cache  # called for each box
def clear_size(threshold: float) -> int:
    """Return the side, in cells, of squares for which no overlap on a grid has an IoU near `threshold`.

    It is that of `SIDES` for which the nearest IoU of two such squares, shifted by cells, is furthest away.
    """

    def clearance(side: int) -> float:
        steps = np.arange(side)
        common = np.multiply.outer(side - steps, side - steps)[1:]
        return float(np.abs(common / (2 * side**2 - common) - threshold).min())

    return max(SIDES, key=clearance)
