"""Two models on the same inputs: are their outputs the same numbers? Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.contract.spec import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import Runner


def spec_of(model: onnx.ModelProto, rtol: float = DEFAULT_RTOL) -> GraphSpec:
    """Return inputs and outputs of a file that states no spec, each output one group with this tolerance."""
    index = Index(model)
    groups = (ColumnGroup(rtol=rtol),)
    sides = [
        tuple(
            TensorSpec(value.name, _dtype(value), tuple(types.shape(value.type) or ()), groups=groups)
            for value in values
        )
        for values in (
            (value for value in model.graph.input if value.name in index.inputs),
            model.graph.output,
        )
    ]
    return GraphSpec('model', *sides)


def _dtype(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name if kind else 'float32'


def compare_models(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rtol: float = DEFAULT_RTOL,
    *,
    any_float: bool = False,
) -> list[TensorRow]:
    """Run two models and compare their outputs by name, without ONNX Runtime's optimisations.

    Args:
        before: the reference.
        after: the model on trial.
        feeds: one or several sets of input name -> array, as `before` takes them.
        rtol: tolerance relative to the largest absolute value of each reference output.
        any_float: outputs may be floats of another width; inputs are cast to what `after` takes.

    Returns:
        Per set of feeds one row per output. An output that only one of the models has fails; so does one in
        which nothing is finite.

    Raises:
        UsageError: an output is no tensor.
    """
    spec = spec_of(before, rtol)
    runners = [Runner(model) for model in (before, after)]
    rows = []
    for one in feeds:
        reference, candidate = (runner.run(_fitting(runner, one, any_float)) for runner in runners)
        lists = [name for name, value in {**candidate, **reference}.items() if not hasattr(value, 'dtype')]
        if lists:
            raise UsageError(f'outputs {lists} are sequences, which are not compared; use --no-proof')
        if any_float:
            candidate = {name: _like(value, reference.get(name)) for name, value in candidate.items()}
        for name in reference.keys() & candidate.keys():
            reference[name], candidate[name] = _finite_part(reference[name], candidate[name])
        rows += compare_tensors(reference, candidate, spec)
    return rows


def _finite_part(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both with zeros where both are the same infinity or NaN; an array of nothing else stays."""
    if (reference.dtype, reference.shape) != (
        candidate.dtype,
        candidate.shape,
    ) or reference.dtype.kind != 'f':
        return reference, candidate
    odd = ~np.isfinite(reference)
    if odd.all() or not np.array_equal(reference[odd], candidate[odd], equal_nan=True):
        return reference, candidate
    return np.where(odd, 0, reference), np.where(odd, 0, candidate)


def _fitting(runner: Runner, feeds: Mapping[str, np.ndarray], any_float: bool) -> dict[str, np.ndarray]:
    if not any_float:
        return dict(feeds)
    wanted = {tensor.name: tensor.dtype for tensor in spec_of(runner.index.model).inputs}
    return {name: array.astype(wanted.get(name, array.dtype)) for name, array in feeds.items()}


def _like(value: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    if reference is None or value.dtype.kind != 'f' or reference.dtype.kind != 'f':
        return value
    return value.astype(reference.dtype)


def is_exact(rows: Iterable[TensorRow]) -> bool:
    """Return whether every output is the same bit for bit."""
    return all(row.passed and row.max_abs == 0 for row in rows)


def with_half_ends(spec: GraphSpec) -> GraphSpec:
    """Return a spec whose float32 inputs and outputs are float16."""
    sides = (
        tuple(
            dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor
            for tensor in tensors
        )
        for tensors in (spec.inputs, spec.outputs)
    )
    return GraphSpec(spec.name, *sides, spec.state)
