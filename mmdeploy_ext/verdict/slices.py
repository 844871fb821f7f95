"""Tolerances of floats: per slice, by size, and by float32 rounding.

A tensor may mix scores and pixels, or logits and a mask's -1e9. One tolerance relative to its largest value
would hide errors of small values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.spec import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.contract.spec import ColumnGroup

MOST_SLICES = 128
"""Longer axes are not compared entry by entry."""
LARGEST_SLICED = 1e-3
"""Larger relative tolerances, of float16 and INT8, apply to the whole tensor."""
JUMP, LEAST = 100.0, 1e-3
"""A size starts a new magnitude if it is `JUMP` times the next smaller one above `LEAST`."""
SENTINEL = 1e4
"""Sizes from here on, equal on both sides, may be masks: no tolerance relates to them."""
FLOOR = 1e-6
"""Least tolerance with `DEFAULT_RTOL`; without float64, also relative to the tensor's largest value."""
ROUNDINGS, MOST_ROUNDING = 3.0, 10.0
"""Largest allowed distance from float64, as a multiple of the relative tolerance."""
DRAWS = 3
"""Draws of float32; the reference's own distance from float64 may be small by chance."""


@dataclasses.dataclass(frozen=True)
class WorstValue:
    """A tensor's value farthest beyond, or nearest to, its tolerance.

    Attributes:
        difference, tolerance: absolute.
        over: number of values beyond tolerance, along the axis of `place`.
        place: 'column 4', 'channel 0', or '' of a tensor without slices.
        is_dead: the candidate is all zero, not by rounding.
    """

    difference: float
    tolerance: float
    over: int
    place: str
    is_dead: bool

    @property
    def ratio(self) -> float:
        """Difference over tolerance."""
        return self.difference / self.tolerance if self.tolerance else np.inf if self.difference else 0.0


def distances(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return absolute differences, and the reference's sizes for relative tolerances.

    Equal infinities and pairs of NaN differ by 0, others by infinity. NaN, infinities and equal sentinels
    have the size 0.
    """
    wide = np.complex128 if reference.dtype.kind == 'c' else np.float64
    expected, got = reference.astype(wide), candidate.astype(wide)
    with np.errstate(invalid='ignore', over='ignore'):
        differences = np.abs(expected - got)
    sizes = np.abs(expected)
    if not np.isfinite(differences).all():
        is_same = (expected == got) | (np.isnan(expected) & np.isnan(got))
        differences = np.where(is_same, 0.0, np.where(np.isfinite(differences), differences, np.inf))
    if sizes.max(initial=0) < SENTINEL:  # no NaN either
        return differences, sizes
    is_special = ~np.isfinite(sizes) | ((differences == 0) & (sizes >= SENTINEL))
    return differences, np.where(is_special, 0.0, sizes)


def worst_value(
    differences: np.ndarray,
    sizes: np.ndarray,
    group: ColumnGroup,
    rounding: np.ndarray | float | None = None,
    is_zero: bool = False,
) -> WorstValue:
    """Judge differences by the tolerances of a column group.

    - `differences`, `sizes`: see `distances`.
    - `rounding`: the reference's distances from float64; None: unknown.
    - `is_zero`: every value of the candidate is zero.
    """
    largest = float(sizes.max(initial=0))
    share = min(FLOOR, group.rtol * FLOOR / DEFAULT_RTOL)  # 0 for exact groups
    least = share if rounding is not None else share * max(largest, 1.0)
    distances = np.asarray(0 if rounding is None else rounding, np.float64)
    rounding = np.broadcast_to(distances, sizes.shape)

    def relative(size: np.ndarray | float) -> np.ndarray:
        return np.maximum(group.rtol * size, group.atol)

    def allowed(size: np.ndarray | float, rounded: np.ndarray | float) -> np.ndarray:
        most = np.maximum(MOST_ROUNDING * relative(size), relative(largest))
        return np.maximum(np.maximum(relative(size), least), np.minimum(ROUNDINGS * rounded, most))

    worst = None
    is_dead = is_zero and largest > max(least, ROUNDINGS * float(rounding.max(initial=0)))
    for title, axis in _axes(sizes.shape, group):
        split = [_slices(array, axis) for array in (differences, sizes)]
        split.append(
            _slices(rounding, axis) if distances.ndim else np.broadcast_to(distances, split[0].shape)
        )
        bars = _bars(*split[1:], allowed)
        ratios = np.divide(split[0], bars, out=np.where(split[0] > 0, np.inf, 0.0), where=bars > 0)
        row, value = np.unravel_index(ratios.argmax(), ratios.shape)
        index = row if title != 'column' or group.columns is None else group.columns[row]
        found = WorstValue(
            float(split[0][row, value]),
            float(np.broadcast_to(bars, ratios.shape)[row, value]),
            int((split[0] > bars).sum()),
            f'{title} {index}' if title else '',
            is_dead,
        )
        worst = found if worst is None or found.ratio > worst.ratio else worst
    return worst


def _axes(shape: tuple[int, ...], group: ColumnGroup) -> list[tuple[str, int | None]]:
    ndim = len(shape)
    axes = {'column': ndim - 1} if ndim > 1 else {}
    axes |= {'channel': 1} if ndim > 2 else {}
    is_sliced = 0 < group.rtol <= LARGEST_SLICED
    found = [(title, axis) for title, axis in axes.items() if is_sliced and 1 < shape[axis] <= MOST_SLICES]
    return found or [('', None)]


def _slices(array: np.ndarray, axis: int | None) -> np.ndarray:
    """(slices, values)."""
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _bars(sizes: np.ndarray, rounding: np.ndarray, allowed: Callable[..., Any]) -> np.ndarray:
    """Tolerances (slices, values), or (slices, 1) if none has values of several magnitudes."""
    tops = sizes.max(axis=1)
    bars = allowed(tops, rounding.max(axis=1))[:, None]
    rows = [row for row in np.flatnonzero(tops > JUMP * LEAST) if _may_jump(sizes[row])]
    if rows:
        bars = bars.repeat(sizes.shape[1], axis=1)
    for row in rows:
        ranked = np.sort(sizes[row])
        is_jump = (ranked[1:] > JUMP * ranked[:-1]) & (ranked[:-1] > LEAST)
        usual = np.median(rounding[row])
        for last in ranked[:-1][is_jump][::-1]:  # from the largest magnitude down
            smaller = sizes[row] <= last
            # a value small by chance rounds like its neighbours
            bars[row, smaller] = allowed(last, max(rounding[row, smaller].max(), usual))
    return bars


def _may_jump(sizes: np.ndarray) -> bool:
    """Whether the sizes skip exponents of two, without sorting them."""
    exponents = np.ascontiguousarray(sizes).view(np.int64)[sizes > LEAST] >> 52  # sizes have no sign
    present = np.flatnonzero(np.bincount(exponents - exponents.min()))
    return bool((np.diff(present) > np.log2(JUMP) - 1).any())
