"""Two models on the same inputs: are their outputs the same numbers? Needs no torch."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index
from mmdeploy_ext.graphs.passes.round_half import round_half
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.spec.comparison import compare_named, without_sequences
from mmdeploy_ext.spec.results import TensorRow
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, GraphSpec, TensorSpec, as_float16


def spec_of(model: onnx.ModelProto) -> GraphSpec:
    """Return a spec of a graph without one; unknown dtypes and sequences are float32, texts 'object'."""
    fed = Index(model).inputs

    def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
        element = value.type.tensor_type.elem_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(element)).name if element else 'float32'
        return TensorSpec(value.name, dtype, tuple(types.shape(value.type) or ()))

    inputs = tuple(tensor_spec(value) for value in model.graph.input if value.name in fed)
    return GraphSpec('model', inputs, tuple(map(tensor_spec, model.graph.output)))


def with_half_ends(spec: GraphSpec) -> GraphSpec:
    """Return a spec with float16 in place of float32 inputs and outputs."""
    inputs = tuple(as_float16(tensor) if tensor.default is None else tensor for tensor in spec.inputs)
    outputs = tuple(map(as_float16, spec.outputs))
    return GraphSpec(spec.name, inputs, outputs, spec.state)


def compare_models(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rtol: float = DEFAULT_RTOL,
    *,
    any_float: bool = False,
) -> list[TensorRow]:
    """Run two models and compare their outputs by name, without ONNX Runtime's optimisations.

    - `feeds`: sets of inputs (name -> array) for both models.
    - `rtol`: relative to the largest absolute finite value of a slice (`spec/comparison.py`); outputs other
      than floats have to be equal.
    - `any_float`: cast inputs to the dtypes that each model takes; compare outputs in the width of `before`.

    Returns:
        For each set of inputs, a row for each output, or for each tensor of a sequence. An output that one
            model lacks, that is empty, or is NaN everywhere, fails. Infinities and NaN have to be in the same
            places.
    """
    runners = []
    for model in (before, after):
        if any_float:
            with contextlib.suppress(ExportError):  # a body computes in float16
                model = round_half(model)
        runner = Runner(model)
        inputs = spec_of(runner.index.model).inputs if any_float else ()
        runners.append((runner, {tensor.name: tensor.dtype for tensor in inputs}))
    rows = []
    for arrays in feeds:
        outputs = [
            runner.run({name: array.astype(dtypes.get(name, array.dtype)) for name, array in arrays.items()})
            for runner, dtypes in runners
        ]
        rows += _compare_outputs(*outputs, rtol, any_float)
    return rows


def _compare_outputs(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], rtol: float, any_float: bool = False
) -> list[TensorRow]:
    reference, candidate = without_sequences(reference), without_sequences(candidate)
    for name in reference.keys() & candidate.keys():
        expected, array = reference[name], candidate[name]
        if any_float and expected.dtype.kind == array.dtype.kind == 'f':
            candidate[name] = array.astype(expected.dtype)
    return compare_named(reference, candidate, rtol)
