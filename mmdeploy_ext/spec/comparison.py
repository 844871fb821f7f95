"""Comparison of tensors of two engines by groups of columns."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import on_inputs, shape_text
from mmdeploy_ext.spec.results import FLOAT32, Bars, TensorRow
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, SCORE_COLUMNS, ColumnGroup, GraphSpec, TensorSpec

# Tolerances of floats: per slice, by size, and by float32 rounding.
#
# A tensor may mix scores and pixels, or logits and a mask's -1e9. One tolerance relative to its largest
# value would hide errors of small values.


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


NO_ROUNDING, ANY_ROUNDING = np.zeros((), np.float32), np.float32(np.inf)
Rounding = Callable[[int], Mapping[str, np.ndarray]]
"""Returns tensor -> known distances (same shape) from float64.

The largest over the reference and several draws, see `proving/float64.py`.
"""


def is_equal(rows: Collection[TensorRow]) -> bool:
    """Whether every output passed; False without rows."""
    return bool(rows) and all(row.passed for row in rows)


def is_exact(rows: Collection[TensorRow]) -> bool:
    """Whether no value differs (0.0 equals -0.0, see `same_bits`); False without rows."""
    return is_equal(rows) and all(row.max_abs == 0 for row in rows)


def equality_claim(rows: Collection[TensorRow], inputs: int, claim: str = 'EQUAL') -> str:
    """`EQUAL ON N INPUTS` or `NOT EQUAL`."""
    return f'{claim} {on_inputs(inputs)}' if is_equal(rows) else f'NOT {claim}'


def compare_tensors(
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    spec: GraphSpec,
    rounding: Rounding | None = None,
    bars: Bars = FLOAT32,
) -> list[TensorRow]:
    """Compare outputs by value, column group by column group, slice by slice.

    NaN and infinities must be in the same places; missing tensors fail. In float32 `rounding` is called if
    floats fail that it may excuse, with one more draw until they pass.
    """
    rounding = rounding if bars.is_float32 else None
    rows: list[TensorRow] = []
    distances: dict[int, Mapping[str, np.ndarray]] = {}
    for tensor in spec.outputs:
        if tensor.compare != 'values':
            continue
        sides = reference.get(tensor.name), candidate.get(tensor.name)
        compared = _compare_output(tensor, *sides, None if rounding is None else NO_ROUNDING)
        is_open = rounding is not None and not is_equal(compared) and _may_pass(tensor, *sides)
        for draws in range(DRAWS + 1) if is_open else ():
            if draws not in distances:
                distances[draws] = rounding(draws)
            compared = _compare_output(tensor, *sides, distances[draws].get(tensor.name))
            if is_equal(compared):
                break
        rows += compared
    outputs = ', '.join(spec.output_names)
    for side, tensors in (('the reference', reference), ('the candidate', candidate)):
        reason = f'extra: only {side} has it; outputs of {spec.name} are {outputs}'
        unknown = [name for name in tensors if name not in spec.output_names]
        rows.extend(failed_row(name, reason, tensors[name]) for name in unknown)
    return bars.judge(rows)


def _may_pass(tensor: TensorSpec, reference: np.ndarray | None, candidate: np.ndarray | None) -> bool:
    """Whether floats pass with the largest allowed rounding."""
    if reference is None or candidate is None or reference.dtype.kind not in 'fc':
        return False
    return is_equal(_compare_output(tensor, reference, candidate, ANY_ROUNDING))


def compare_named(
    reference: Mapping[str, Any],
    candidate: Mapping[str, Any],
    rtol: float,
    title: str = 'the model',
    rounding: Rounding | None = None,
    bars: Bars = FLOAT32,
) -> list[TensorRow]:
    """Compare outputs by name without a spec; integers, booleans and texts must be equal.

    `rtol` is relative to a slice's largest reference value; for `rounding` see `compare_tensors`.
    """
    reference, candidate = without_sequences(reference), without_sequences(candidate)
    outputs = []
    for name, array in reference.items():
        group = ColumnGroup(rtol=rtol if array.dtype.kind in 'fc' else 0.0)
        outputs.append(TensorSpec(name, array.dtype.name, array.shape, groups=(group,)))
    return compare_tensors(reference, candidate, GraphSpec(title, (), tuple(outputs)), rounding, bars)


def without_sequences(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Replace lists of arrays by 'name[0]', 'name[1]', ..."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, list):
            arrays |= {f'{name}[{index}]': np.asarray(array) for index, array in enumerate(value)}
        else:
            arrays[name] = np.asarray(value)
    return arrays


def same_bits(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether two runs gave the same outputs bit for bit."""
    return first.keys() == second.keys() and all(
        array.dtype == second[name].dtype
        and array.shape == second[name].shape
        and (array is second[name] or np.array_equal(_bytes(array), _bytes(second[name])))
        for name, array in first.items()
    )


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def failed_row(name: str, reason: str, array: np.ndarray | None = None) -> TensorRow:
    shape = '-' if array is None else shape_text(np.shape(array))
    return TensorRow(name, shape, None, None, None, None, False, reason)


def _compare_output(
    tensor: TensorSpec,
    reference: np.ndarray | None,
    candidate: np.ndarray | None,
    rounding: np.ndarray | None,
) -> list[TensorRow]:
    reason = _incomparable(reference, candidate)
    if reason:
        return [failed_row(tensor.name, reason, reference)]
    groups, rows = tensor.column_groups, []
    last_axis = reference.shape[-1] if reference.ndim else 1
    for group in groups:
        name = f'{tensor.name} [{group.name}]' if len(groups) > 1 and group.name else tensor.name
        if group.columns is not None and not all(0 <= column < last_axis for column in group.columns):
            reason = f'the spec has columns {group.columns}, the tensor has {last_axis}'
            rows.append(failed_row(name, reason, reference))
        else:
            rows.append(_compare_group(name, group, reference, candidate, rounding))
    uncovered = []
    if all(group.columns is not None for group in groups):
        covered = {column for group in groups for column in group.columns}
        uncovered = [column for column in range(last_axis) if column not in covered]
    if uncovered:
        reason = f'columns {uncovered} belong to no column group of the spec, so nothing compares them'
        rows.append(failed_row(tensor.name, reason, reference))
    return rows


def _incomparable(reference: np.ndarray | None, candidate: np.ndarray | None) -> str:
    if reference is None:
        return f'missing in {"both sides" if candidate is None else "the reference"}'
    if candidate is None:
        return 'missing in the candidate'
    if reference.shape != candidate.shape:
        return f'shape: got {shape_text(candidate.shape)}, expected {shape_text(reference.shape)}'
    if reference.dtype != candidate.dtype:
        return f'dtype: got {candidate.dtype}, expected {reference.dtype}'
    if reference.size == 0:
        return f'empty ({shape_text(reference.shape)}): nothing was compared'
    return ''


def _compare_group(
    name: str,
    group: ColumnGroup,
    reference: np.ndarray,
    candidate: np.ndarray,
    rounding: np.ndarray | None,
) -> TensorRow:
    """An all-zero candidate fails: the output may be dead."""
    if group.columns is not None and reference.ndim:
        columns = list(group.columns)
        if rounding is not None and rounding.shape == reference.shape:
            rounding = rounding[..., columns]
        reference, candidate = reference[..., columns], candidate[..., columns]
    if reference.size == 0:
        return failed_row(name, 'empty column group: nothing was compared', reference)
    if reference.dtype.kind not in 'fc':
        return _compare_exactly(name, group, reference, candidate)
    differences, sizes = distances(reference, candidate)
    if not np.isfinite(differences).all():
        return failed_row(name, _not_finite(reference, candidate), reference)
    if np.isnan(reference).all():
        return failed_row(name, 'every value is NaN on both sides: nothing was compared', reference)
    worst = worst_value(differences, sizes, group, rounding, not candidate.any())
    reason = ''
    if worst.is_dead:
        reason = 'the candidate is all zero, the reference is not'
    elif not worst.ratio <= 1:  # a tolerance of NaN allows nothing
        bar = f'{worst.tolerance:.3g} {group.unit}'.strip()
        reason = f'{worst.over} of {candidate.size} values differ by more than {bar}'
        if worst.place:
            reason = f'{worst.over} of {candidate.size} values differ, most in {worst.place}: '
            reason += f'by {worst.difference:.3g}, allowed {bar}'
    is_special = (sizes == 0) & (reference != 0)
    usual = ArrayDistance(_cleared(candidate, is_special), _cleared(reference, is_special))
    max_rel = group.rtol * worst.ratio if group.rtol else usual.max_rel
    return TensorRow(
        name,
        shape_text(reference.shape),
        worst.difference,
        max_rel if np.isfinite(max_rel) else None,
        usual.cosine,
        worst.tolerance,
        not reason,
        reason,
        norm_ratio=usual.norm_ratio if np.isfinite(usual.norm_ratio) else None,
    )


def _cleared(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.where(places, 0, array) if places.any() else array


def _compare_exactly(
    name: str, group: ColumnGroup, reference: np.ndarray, candidate: np.ndarray
) -> TensorRow:
    """Compare integers, booleans and texts by absolute tolerance."""
    distance, tolerance, reason = ArrayDistance(candidate, reference), float(np.floor(group.atol)), ''
    if distance.scale > 0 and not candidate.any():
        reason = 'the candidate is all zero, the reference is not'
    elif not distance.max_abs <= tolerance:
        over = int((distance.differences > tolerance).sum())
        reason = f'{over} of {candidate.size} values differ by more than {tolerance:.3g} {group.unit}'.strip()
    max_rel, norm_ratio = (
        figure if np.isfinite(figure) else None for figure in (distance.max_rel, distance.norm_ratio)
    )
    figures = (distance.max_abs, max_rel, distance.cosine, tolerance)
    return TensorRow(name, shape_text(reference.shape), *figures, not reason, reason, norm_ratio=norm_ratio)


def _not_finite(reference: np.ndarray, candidate: np.ndarray) -> str:
    counts = [
        f'{side} has {int(np.isnan(values).sum())} NaN and {int(np.isinf(values).sum())} infinite'
        for side, values in (('the candidate', candidate), ('the reference', reference))
        if not np.isfinite(values).all()
    ]
    return f'{", ".join(counts)} of {reference.size} values, which must be in the same places'


def shape_rows(outputs: Mapping[str, np.ndarray], spec: GraphSpec) -> list[TensorRow]:
    """Failing rows for axes that differ from the contract."""
    rows = []
    for tensor in spec.outputs:
        array = outputs.get(tensor.name)
        if tensor.compare != 'detections' or array is None:  # others are compared with the reference
            continue
        sizes = zip(tensor.axes, array.shape, strict=False)
        if len(tensor.axes) != array.ndim or any(
            isinstance(axis, int) and axis != size for axis, size in sizes
        ):
            reason = f'shape: got {"x".join(map(str, array.shape))}, expected {tensor.shape_text()}'
            rows.append(failed_row(tensor.name, reason, array))
    return rows


def order_rows(
    outputs: Mapping[str, np.ndarray], num_classes: int, columns: Mapping[str, int] = SCORE_COLUMNS
) -> list[TensorRow]:
    """Failing rows for broken scores and labels: finite, descending, padded last with score 0 and label -1.

    `columns` is the spec's `score_columns()`; [] if none is an output, or without an output `labels` (B, n).
    """
    name = next((name for name in columns if name in outputs), None)
    if name is None or 'labels' not in outputs:
        return []
    labels, rows, scores = outputs['labels'], [], outputs[name]
    scores = scores[..., columns[name]] if scores.ndim > 2 else scores
    if labels.shape != scores.shape:
        return [failed_row('labels', f'shape: got {labels.shape}, expected {scores.shape}', labels)]
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        image, row = bad[0]
        rows.append(failed_row(name, f'a score is {scores[image, row]}: image {image}, row {row}', scores))
    rising = np.argwhere(np.diff(scores, axis=1) > 0)
    if len(rising):
        image, row = rising[0]
        rows.append(failed_row(name, f'scores do not descend: image {image}, row {row + 1}', scores))
    padding = scores == 0
    for title, wrong in (
        ('padding without label -1', padding & (labels != -1)),
        ('a negative score behind padding', (scores < 0) & np.logical_or.accumulate(padding, axis=1)),
        (f'a label outside of 0..{num_classes - 1}', ~padding & ((labels < 0) | (labels >= num_classes))),
    ):
        if wrong.any():
            image, row = np.argwhere(wrong)[0]
            reason = f'{title}: image {image}, row {row}: {labels[image, row]}'
            rows.append(failed_row('labels', reason, labels))
    return rows


def count_rows(
    outputs: Mapping[str, np.ndarray], bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[TensorRow]:
    """Failing rows for candidate counts (B,) outside of `bounds`: output -> smallest and largest (B,)."""
    rows = []
    for name, (lower, upper) in bounds.items():
        if name not in outputs:
            rows.append(failed_row(name, 'is not an output of the graph'))
            continue
        counts = np.asarray(outputs[name])
        if counts.shape != lower.shape or ((counts < lower) | (counts > upper)).any():
            limits = zip(lower, upper, strict=True)
            expected = ', '.join(f'{low}' if low == high else f'{low} to {high}' for low, high in limits)
            rows.append(failed_row(name, f'got {counts.tolist()}, expected {expected}', counts))
    return rows
