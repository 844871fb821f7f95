"""Walk a graph node by node, each fed with the values of a reference. Needs no torch."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import InferenceError, shape_text
from mmdeploy_ext.graphs.diff.program import OUTPUT_TIES, NodeRunner, Program

BORN_RTOL = 1e-5
"""One node on the same inputs: float32 rounding stays below it, a wrong epsilon or weight does not."""
FREE_RTOL = 1e-4
"""A whole model; the default tolerance of the proof."""
FEW_VALUES = 4
"""Tensors of so few values may be equal by chance."""

EQUAL, BORN, PASSED, INNER, UNKNOWN = 'equal', 'born here', 'passed on', 'inner', 'unknown'
"""States of a tensor, see `Row.state`."""


@dataclasses.dataclass(frozen=True)
class ReferenceTensor:
    """The expected values of a tensor.

    Attributes:
        value: same shape as the tensor, unless `how` is 'value', 'order' or 'module'.
        label: name of a PyTorch module, a tap, or a tensor of a graph.
        module: path of the PyTorch module, or ''.
        how: kind of the pairing: 'structure' of two files; 'name', equal 'value', place in a 'module' or in
            the 'order' of execution; 'values' or 'export' by a fresh export.
        record: place in PyTorch's order of execution, or -1.
    """

    value: np.ndarray
    label: str = ''
    module: str = ''
    how: str = 'name'
    record: int = -1


@dataclasses.dataclass
class Row:
    """One tensor of the walk.

    Attributes:
        position: index of the node; None for a graph output that is an input.
        shape: None if this node or one before it failed.
        reference: expected values, or None.
        error: error of the value in the whole model; None without a reference or value.
        born: error of the node alone on the reference's values; inf also if it fails on them.
        reason: why numbers cannot be compared, or why the node failed.
    """

    position: int | None
    tensor: str
    shape: tuple[int, ...] | None = None
    reference: ReferenceTensor | None = None
    error: float | None = None
    born: float | None = None
    reason: str = ''

    def state(self, born_rtol: float = BORN_RTOL, rtol: float = FREE_RTOL) -> str:
        if self.born is not None and self.born > born_rtol:
            return BORN
        if self.error is not None and self.error > rtol:
            return PASSED
        if self.reference is None:
            return UNKNOWN if self.shape is None else INNER
        return EQUAL if self.error is not None else UNKNOWN


@dataclasses.dataclass
class Walk:
    """The result of a walk.

    Attributes:
        rows: tensor -> row, in topological order.
        free: tensor -> value from the graph's inputs.
        good: tensor -> value of the reference, or computed from the reference's values.
    """

    program: Program
    rows: dict[str, Row]
    free: dict[str, np.ndarray]
    good: dict[str, np.ndarray]

    def latest_input(self, position: int) -> int:
        """Return the largest `record` among the references of a node's inputs, or -1."""
        rows = [self.rows[name] for name in self.program.index.reads(position) if name in self.rows]
        return max((row.reference.record for row in rows if row.reference is not None), default=-1)


def walk(
    program: Program,
    feeds: Mapping[str, np.ndarray],
    references: Mapping[str, ReferenceTensor],
    runner: NodeRunner,
    lookup: Callable[[Walk, str, int, np.ndarray], ReferenceTensor | None] | None = None,
) -> Walk:
    """Run each node of a graph on the reference's values and compare its outputs.

    - `feeds`: input -> array of its dtype.
    - `references`: tensor -> expected values that are known before the walk.
    - `runner`: shared by walks, it runs equal nodes on equal values once.
    - `lookup`: (walk so far, tensor, position of its node, fed value) -> a reference, or None.
    """
    base = {**program.constants, **program.defaults, **feeds}
    result = Walk(program, rows={}, free=dict(base), good=dict(base))
    for position in program.steps:
        free, free_failure = _run(program, position, result.free, runner)
        fed, fed_failure = _run(program, position, result.good, runner)
        for place, tensor in enumerate(program.index.writes(position)):
            row = Row(position, tensor, reason=fed_failure or free_failure)
            result.rows[tensor] = row
            if free is not None:
                result.free[tensor], row.shape = free[place], getattr(free[place], 'shape', ())
            value = None if fed is None else fed[place]
            reference = references.get(tensor)
            if reference is None and lookup is not None and isinstance(value, np.ndarray):
                reference = lookup(result, tensor, position, value)
            if reference is None:
                if value is not None:
                    result.good[tensor] = value
                continue
            want = _in_shape_of(reference, value)  # in its dtype: what float16 cannot hold is an error
            row.reference, result.good[tensor] = reference, want
            if value is not None:
                result.good[tensor] = _in_width_of(want, value)
            node = program.index.nodes[position]
            is_tied = value is not None and _is_tied(node, place, value, result.good, want)
            row.born, reason = (0.0, '') if is_tied else compare(value, want)
            row.reason = row.reason or reason
            if free is not None:
                is_same = is_tied and np.array_equal(free[place], value)
                row.error, reason = (0.0, '') if is_same else compare(free[place], want)
                row.reason = row.reason or reason
            if value is None and fed_failure:
                row.born = math.inf
    _add_constant_outputs(result, references)
    return result


def _add_constant_outputs(walk: Walk, references: Mapping[str, ReferenceTensor]) -> None:
    index = walk.program.index
    for name in index.outputs:
        reference = references.get(name)
        if name in walk.rows or name not in walk.free or reference is None:
            continue
        error, reason = compare(walk.free[name], reference.value)
        if error and not reason and name in walk.program.constants:
            reason = 'is a constant in this file'
        shape = walk.free[name].shape
        walk.rows[name] = Row(index.producer(name), name, shape, reference, error, error, reason)


def compare(got: Any, want: Any) -> tuple[float | None, str]:
    """Return the error of a tensor, and why the error is infinite, or ''.

    The error is the largest difference over the largest finite magnitude of `want`; of integers, booleans,
    texts and bfloat16 the share of values that differ.
    """
    if not isinstance(got, np.ndarray) or not isinstance(want, np.ndarray):
        return None, ''
    if got.shape != want.shape:
        return math.inf, f'shape {shape_text(got.shape)}, expected {shape_text(want.shape)}'
    if got.size == 0 or got is want:
        return 0.0, ''
    kinds = {got.dtype.kind, want.dtype.kind}
    if kinds != {'f'}:
        if 'f' in kinds:
            return math.inf, f'dtype {got.dtype}, expected {want.dtype}'
        return float(np.mean(got != want)), ''
    distance = ArrayDistance(got, want)
    if math.isinf(distance.max_abs):
        return math.inf, 'NaN or infinity where the reference has a number, or the other way round'
    return distance.max_rel, 'the reference is 0 everywhere' if math.isinf(distance.max_rel) else ''


def is_informative(value: np.ndarray) -> bool:
    """Whether more than `FEW_VALUES` floats are not all equal."""
    return value.dtype.kind == 'f' and value.size > FEW_VALUES and float(np.ptp(np.nan_to_num(value))) > 0


def _run(
    program: Program, position: int, values: Mapping[str, np.ndarray], runner: NodeRunner
) -> tuple[list[np.ndarray] | None, str]:
    if not values.keys() >= set(program.index.reads(position)):
        return None, ''
    try:
        return runner.run(program, position, values), ''
    except InferenceError as error:
        return None, f'the node fails: {error}'


def _in_shape_of(reference: ReferenceTensor, value: np.ndarray | None) -> np.ndarray:
    want, how = reference.value, reference.how
    if value is None:
        return want
    is_flattened = how in ('order', 'module') and want.ndim != value.ndim and want.size == value.size
    return want.reshape(value.shape) if how == 'value' or is_flattened else want


def _in_width_of(want: np.ndarray, value: np.ndarray) -> np.ndarray:
    if not isinstance(want, np.ndarray) or not isinstance(value, np.ndarray):
        return want
    if value.dtype == want.dtype or value.dtype.kind != want.dtype.kind:
        return want
    with np.errstate(over='ignore'):
        return want.astype(value.dtype)


def _is_tied(
    node: onnx.NodeProto, place: int, value: np.ndarray, good: Mapping[str, np.ndarray], want: np.ndarray
) -> bool:
    if OUTPUT_TIES.get(node.op_type) != place or value.shape != want.shape:
        return False
    axis = next((entry.i for entry in node.attribute if entry.name == 'axis'), -1)
    source = good[node.input[0]]
    if want.dtype.kind not in 'iu' or want.max(initial=0) >= source.shape[axis]:
        return False
    picked, expected = (np.take_along_axis(source, indices, axis) for indices in (value, want))
    return bool(np.allclose(picked, expected, rtol=1e-6, atol=0))
