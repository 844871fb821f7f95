"""Two models on the same inputs: are their outputs the same numbers? Needs no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.contract.spec import DEFAULT_RTOL, GraphSpec, TensorSpec
from mmdeploy_ext.graph.feeds import common_feeds, random_feeds
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.tensors import compare_named, without_sequences

ROUNDING = 1e-5
"""Tolerance of cut and renamed graphs, relative to an output's largest value: a kernel may sum in another
order once a constant is an input."""


def spec_of(model: onnx.ModelProto) -> GraphSpec:
    """Return inputs and outputs of a file that states no spec."""
    fed = Index(model).inputs

    def tensor(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type.elem_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name if kind else 'float32'
        return TensorSpec(value.name, dtype, tuple(types.shape(value.type) or ()))

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
    """
    runners = [Runner(model) for model in (before, after)]
    rows = []
    for arrays in feeds:
        outputs = [runner.run(_fitting(runner, arrays, any_float)) for runner in runners]
        rows += _compare_outputs(*outputs, rtol, any_float)
    return rows


def compare_edited(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int = 0,
    renamed: Mapping[str, str] | None = None,
) -> list[TensorRow]:
    """Run a graph and one that was cut from it or renamed, and compare every output of the latter.

    The edited graph gets its inputs from the same tensors of the first, so that cuts are compared too; their
    names may differ (`renamed`: old -> new). The shapes are those of the graph whose inputs are fixed.

    Raises:
        ShapeError: no inputs suit both.
        InferenceError: ONNX Runtime failed on one of them.
    """
    new = renamed or {}
    old = {name: other for other, name in new.items()}
    edited, feeds = Index(after), common_feeds(before, after, new, seed)
    sources = {name: old.get(name, name) for name in (*edited.inputs, *edited.outputs)}
    tensors = Runner(before, list(sources.values())).run(feeds)
    candidate = Runner(after).run({name: tensors[sources[name]] for name in edited.inputs})
    reference = {name: tensors[sources[name]] for name in edited.outputs}
    return _compare_outputs(reference, candidate, ROUNDING)


def compare_merged(
    models: Sequence[onnx.ModelProto],
    merged: onnx.ModelProto,
    connections: Mapping[str, str],
    *,
    seed: int = 0,
) -> list[TensorRow]:
    """Run models in the order of execution and compare the outputs of the one that was made from them.

    `connections` are output -> input that it feeds, where the names differ.
    """
    feeds = random_feeds(merged, seed)
    tensors: dict[str, Any] = dict(feeds)
    sources = {entry: out for out, entry in connections.items()}
    for model in models:
        inputs = Index(model).inputs
        arrays = {name: tensors[sources[name] if sources.get(name) in tensors else name] for name in inputs}
        tensors.update(Runner(model).run(arrays))
    candidate = Runner(merged).run(feeds)
    return _compare_outputs({name: tensors[name] for name in candidate}, candidate, ROUNDING)


def _compare_outputs(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], rtol: float, any_float: bool = False
) -> list[TensorRow]:
    """Compare outputs by name; where both are the same infinity or NaN the finite values decide."""
    reference, candidate = without_sequences(reference), without_sequences(candidate)
    for name in reference.keys() & candidate.keys():
        expected, array = reference[name], candidate[name]
        if any_float and expected.dtype.kind == array.dtype.kind == 'f':
            array = array.astype(expected.dtype)
        reference[name], candidate[name] = _finite_part(expected, array)
    return compare_named(reference, candidate, rtol)


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


def with_half_ends(spec: GraphSpec) -> GraphSpec:
    """Return a spec whose float32 inputs and outputs are float16."""

    def half(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor

    sides = (tuple(map(half, tensors)) for tensors in (spec.inputs, spec.outputs))
    return GraphSpec(spec.name, *sides, spec.state)
