"""Tolerances of floats: per slice, by size, and by float32 rounding.

A tensor may mix scores and pixels, or logits and a mask's -1e9. One tolerance relative to its largest value
would hide errors of small values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmdeploy_ext.spec.tensors import ColumnGroup

MOST_SLICES = 128
"""Up to this length, columns (last axis) and channels (axis 1) are always slices."""
OTHER_SCALE, FEWEST_VALUES, WINDOW, LONGEST_PERIOD = 10.0, 4, 32, 4096
"""Entries of any axis are slices if their largest values differ by `OTHER_SCALE`, see `_differ_in_scale`.

A vector is also divided into windows, and into every p-th value, as if a table or maps had been flattened.
"""
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
FEW_VALUES = 16
"""Slices of other axes with fewer values round like those beside them: their rounding is small by chance."""
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
    for title, split, is_usual in _slicings(sizes, group):
        sliced = [split(differences), split(sizes)]
        sliced.append(split(rounding) if distances.ndim else np.broadcast_to(distances, sliced[0].shape))
        bars = _bars(*sliced[1:], allowed, is_usual)
        ratios = np.divide(sliced[0], bars, out=np.where(sliced[0] > 0, np.inf, 0.0), where=bars > 0)
        row, value = np.unravel_index(ratios.argmax(), ratios.shape)
        found = WorstValue(
            float(sliced[0][row, value]),
            float(np.broadcast_to(bars, ratios.shape)[row, value]),
            int((sliced[0] > bars).sum()),
            title(row),
            is_dead,
        )
        worst = found if worst is None or found.ratio > worst.ratio else worst
    return worst


Slicing = tuple['Callable[[int], str]', 'Callable[[np.ndarray], np.ndarray]', bool]
"""Functions: index of a slice -> its place; array -> (slices, values); whether it is usual."""


def _slicings(sizes: np.ndarray, group: ColumnGroup) -> Iterator[Slicing]:
    is_whole = True
    for axis, size in enumerate(sizes.shape if 0 < group.rtol <= LARGEST_SLICED else ()):
        is_column, is_channel = axis == sizes.ndim - 1 > 0, axis == 1 < sizes.ndim - 1
        is_usual = (is_column or is_channel) and size <= MOST_SLICES
        others = tuple(other for other in range(sizes.ndim) if other != axis)
        if size > 1 and (is_usual or _differ_in_scale(sizes.max(axis=others, initial=0), sizes.size // size)):
            is_whole &= not is_usual
            columns = group.columns if is_column else None
            name = 'column' if is_column else 'channel' if is_channel else f'axis {axis}, index'
            yield functools.partial(_place, name, columns), functools.partial(_slices, axis=axis), is_usual
    if is_whole:
        yield lambda row: '', lambda array: array.reshape(1, -1), True
    if max(sizes.shape, default=0) == sizes.size and 0 < group.rtol <= LARGEST_SLICED:
        yield from _slicings_of_vector(sizes.ravel())


def _place(name: str, columns: tuple[int, ...] | None, row: int) -> str:
    return f'{name} {row if columns is None else columns[row]}'


def _slicings_of_vector(sizes: np.ndarray) -> Iterator[Slicing]:
    if _differ_in_scale(_windows(sizes).max(axis=1), WINDOW):
        yield lambda row: f'values {row * WINDOW} to {(row + 1) * WINDOW - 1}', _windows, False
    periods: dict[int, float] = {}
    for period in range(2, min(LONGEST_PERIOD, len(sizes) // FEWEST_VALUES) + 1):
        if len(sizes) % period == 0:
            tops = sizes.reshape(-1, period).max(axis=0)
            if _differ_in_scale(tops, len(sizes) // period):
                periods[period] = float(np.log(tops[tops > 0]).mean())
    if periods:  # its multiples separate the same scales
        period = min(periods, key=periods.get)
        yield (
            lambda row: f'every {period}th value from {row}',
            lambda array: array.reshape(-1, period).T,
            False,
        )


def _differ_in_scale(tops: np.ndarray, values: int) -> bool:
    """Whether slices with these largest values, of so many values each, differ by more than chance."""
    tops = tops[tops > 0]
    # of 10,000 normally distributed slices of 12 values, none is 10 times smaller than the largest
    is_by_chance = values < max(FEWEST_VALUES, 3 * math.log10(max(len(tops), 1)))
    return not is_by_chance and len(tops) > 1 and bool(tops.max() > OTHER_SCALE * tops.min())


def _slices(array: np.ndarray, axis: int) -> np.ndarray:
    """(slices, values)."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _windows(vector: np.ndarray) -> np.ndarray:
    return np.pad(vector.ravel(), (0, -vector.size % WINDOW)).reshape(-1, WINDOW)


def _bars(sizes: np.ndarray, rounding: np.ndarray, allowed: Callable[..., Any], is_usual: bool) -> np.ndarray:
    """Tolerances (slices, values), or (slices, 1) if none has values of several magnitudes."""
    tops, rounded = sizes.max(axis=1), rounding.max(axis=1)
    if not is_usual and sizes.shape[1] < FEW_VALUES:
        rounded = np.maximum(rounded, np.median(rounded))
    bars = allowed(tops, rounded)[:, None]
    rows = np.flatnonzero(tops > JUMP * LEAST) if is_usual else ()  # few values jump by chance
    rows = [row for row in rows if _may_jump(sizes[row])]
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
