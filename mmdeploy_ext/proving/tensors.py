"""Level 2 of a proof: tensors of one engine against those of another. Needs numpy only."""

from collections.abc import Mapping

import numpy as np

from mmdeploy_ext.contract.spec import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.proving.rows import TensorRow

HISTOGRAM_DECADES = (-12, 0)
"""Decades of |difference| / scale in a row's histogram; the first count is all that is equal or below."""


def compare_tensors(
    reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], spec: GraphSpec
) -> list[TensorRow]:
    """Compare the outputs that the spec compares by value, column group by column group.

    Nothing passes by being absent: a name that one side lacks, a name that the spec does not know, an empty
    tensor and columns that no group covers are failing rows. The reference is the unpatched model, the
    candidate the engine on trial.

    Returns:
        One row per column group in spec order, then one per unknown name.
    """
    rows: list[TensorRow] = []
    for tensor in spec.outputs:
        if tensor.compare == 'values':
            rows.extend(_compare_output(tensor, reference.get(tensor.name), candidate.get(tensor.name)))
    outputs = ', '.join(spec.output_names)
    for side, tensors in (('the reference', reference), ('the candidate', candidate)):
        reason = f'extra: only {side} has it; outputs of {spec.name} are {outputs}'
        unknown = [name for name in tensors if name not in spec.output_names]
        rows.extend(failed_row(name, reason, tensors[name]) for name in unknown)
    return rows


def same_bits(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Return whether two runs gave the same arrays bit for bit, NaN included."""
    return first.keys() == second.keys() and all(
        array.dtype == second[name].dtype
        and array.shape == second[name].shape
        and (array is second[name] or np.array_equal(_bytes(array), _bytes(second[name])))
        for name, array in first.items()
    )


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array as uint8, without copying one that lies in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def failed_row(name: str, reason: str, array: np.ndarray | None = None) -> TensorRow:
    """Return a failing row for a tensor that could not be compared; its figures are None."""
    shape = '-' if array is None else shape_text(np.shape(array))
    return TensorRow(name, shape, None, None, None, None, False, reason)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return '1x80x76x76'."""
    return 'x'.join(map(str, shape)) or 'scalar'


def _compare_output(
    tensor: TensorSpec, reference: np.ndarray | None, candidate: np.ndarray | None
) -> list[TensorRow]:
    reason = _incomparable(reference, candidate)
    if reason:
        return [failed_row(tensor.name, reason, reference)]
    groups, rows = tensor.column_groups, []
    last_axis = reference.shape[-1] if reference.ndim else 1
    for group in groups:
        name = f'{tensor.name} [{group.name}]' if len(groups) > 1 and group.name else tensor.name
        if group.columns is not None and not all(0 <= column < last_axis for column in group.columns):
            reason = f'the spec wants columns {group.columns}, the tensor has {last_axis}'
            rows.append(failed_row(name, reason, reference))
        else:
            rows.append(_compare_group(name, group, reference, candidate))
    if uncovered := _uncovered(groups, last_axis):
        reason = f'columns {uncovered} belong to no column group of the spec, so nothing compares them'
        rows.append(failed_row(tensor.name, reason, reference))
    return rows


def without_ties(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    ties: Mapping[str, np.ndarray],
    rtol: float = DEFAULT_RTOL,
) -> dict[str, np.ndarray]:
    """Return the outputs with the reference's value where a tie made one side zero and not the other.

    `ties` are the other values that zeros may have there, or NaN; see `ImageFamily.interchangeable_zeros`.
    The side that is not zero has to be as near to it as `rtol` times the largest reference value.
    """
    result = dict(outputs)
    for name, value in ties.items():
        wanted, got = reference.get(name), outputs.get(name)
        if wanted is not None and got is not None and got.shape == wanted.shape == value.shape:
            one_zero = (wanted == 0) != (got == 0)
            other = np.where(wanted == 0, got, wanted)
            near = np.abs(other - value) <= rtol * np.abs(wanted).max(initial=0)
            result[name] = np.where(one_zero & near, wanted, got)
    return result


def _incomparable(reference: np.ndarray | None, candidate: np.ndarray | None) -> str:
    """Return why two arrays cannot be compared at all; '' when they can."""
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


def _uncovered(groups: tuple[ColumnGroup, ...], last_axis: int) -> list[int]:
    if any(group.columns is None for group in groups):
        return []
    covered = {column for group in groups for column in group.columns}
    return [column for column in range(last_axis) if column not in covered]


def _compare_group(name: str, group: ColumnGroup, reference: np.ndarray, candidate: np.ndarray) -> TensorRow:
    """Compare one column group in float64.

    The allowed difference is the larger of `rtol` times the group's largest absolute reference value and
    `atol`. A reference of zeros has no scale: without `atol` only zeros equal it. An all-zero candidate of a
    reference that is not zero fails whatever `atol` allows, since that is what a dead output looks like.
    """
    columns = slice(None) if group.columns is None else list(group.columns)
    if reference.ndim:
        reference, candidate = reference[..., columns], candidate[..., columns]
    if reference.size == 0:
        return failed_row(name, 'empty column group: nothing was compared', reference)
    expected, got = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    odd = [_not_finite('candidate', got), _not_finite('reference', expected)]
    if any(odd):
        hint = 'the reference is no better, so there is nothing to prove' if all(odd) else ''
        return failed_row(name, '; '.join(filter(None, [*odd, hint])), reference)
    difference = np.abs(got - expected)
    scale, max_abs, reason = float(np.abs(expected).max()), float(difference.max()), ''
    tolerance = max(group.rtol * scale, group.atol)
    if scale > 0 and not got.any():
        reason = 'the candidate is all zero, the reference is not'
    elif max_abs > tolerance:
        over = int((difference > tolerance).sum())
        reason = f'{over} of {difference.size} values differ by more than {tolerance:.3g}'
        reason += f' {group.unit}' if group.unit else ''
    max_rel = None if max_abs > scale == 0 else max_abs / (scale or 1.0)
    figures = (max_abs, max_rel, _cosine(expected, got), tolerance)
    histogram = _histogram(difference, scale)
    return TensorRow(name, shape_text(reference.shape), *figures, not reason, reason, histogram)


def _not_finite(side: str, values: np.ndarray) -> str:
    nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    if not nans and not infinities:
        return ''
    return f'{side}: {nans} NaN and {infinities} infinite of {values.size} values'


def _cosine(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the cosine of two vectors; 1 for two zero vectors, 0 for one."""
    largest = max(float(np.abs(expected).max()), float(np.abs(got).max()))
    if largest == 0:
        return 1.0
    expected, got = expected / largest, got / largest
    norms = float(np.linalg.norm(expected) * np.linalg.norm(got))
    return min(max(float(expected @ got) / norms, -1.0), 1.0) if norms > 0 else 0.0


def _histogram(difference: np.ndarray, scale: float) -> tuple[int, ...]:
    """Count log10(difference / scale) per decade; see `TensorRow.histogram`."""
    low, high = HISTOGRAM_DECADES
    relative = difference / scale if scale > 0 else np.where(difference > 0, 1.0, 0.0)
    with np.errstate(divide='ignore'):
        decades = np.ceil(np.log10(relative))
    index = np.clip(decades, low, high).astype(np.int64) - low
    return tuple(np.bincount(index, minlength=high - low + 1).tolist())
