"""Two models on the same inputs: are their outputs the same numbers? Needs no torch."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.contract.spec import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.tensors import compare_tensors


def spec_of(model: onnx.ModelProto, rtol: float = DEFAULT_RTOL) -> GraphSpec:
    """Return inputs and outputs of a file that states no spec, each output one group with this tolerance."""
    groups, fed = (ColumnGroup(rtol=rtol),), Index(model).inputs

    def tensor(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type.elem_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name if kind else 'float32'
        return TensorSpec(value.name, dtype, tuple(types.shape(value.type) or ()), groups=groups)

    inputs = tuple(tensor(value) for value in model.graph.input if value.name in fed)
    return GraphSpec('model', inputs, tuple(map(tensor, model.graph.output)))


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
        feeds: sets of input name -> array, as `before` takes them.
        rtol: tolerance relative to the largest absolute value of each reference output.
        any_float: outputs may be floats of another width; inputs are cast to what `after` takes.

    Returns:
        Per set one row per output. An output that only one model has, or with nothing finite in it, fails.

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
        for name in reference.keys() & candidate.keys():
            want, got = reference[name], candidate[name]
            if any_float and want.dtype.kind == got.dtype.kind == 'f':
                got = got.astype(want.dtype)
            reference[name], candidate[name] = _finite_part(want, got)
        rows += compare_tensors(reference, candidate, spec)
    return rows


def _finite_part(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both with zeros where both are the same infinity or NaN; an array of nothing else stays."""
    kinds = [(array.dtype, array.shape) for array in (reference, candidate)]
    if kinds[0] != kinds[1] or reference.dtype.kind != 'f':
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


def is_exact(rows: Iterable[TensorRow]) -> bool:
    """Return whether every output is the same bit for bit."""
    return all(row.passed and row.max_abs == 0 for row in rows)


def with_half_ends(spec: GraphSpec) -> GraphSpec:
    """Return a spec whose float32 inputs and outputs are float16."""

    def half(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor

    sides = (tuple(map(half, tensors)) for tensors in (spec.inputs, spec.outputs))
    return GraphSpec(spec.name, *sides, spec.state)
