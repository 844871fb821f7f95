"""A file's precision plan: what it says, how a graph is written by it, and how it is read back."""

from __future__ import annotations

import ast
import copy
import dataclasses
import glob
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.typed_json import JsonDataclass, Mismatch, parse_json, read
from mmdeploy_ext.exporting.int8.dense import (
    QUANTISE,
    RANGES,
    DenseGraph,
    DenseQuantiser,
    finish_model,
    is_quantised,
)
from mmdeploy_ext.graphs import edits
from mmdeploy_ext.graphs.io.index import Index
from mmdeploy_ext.graphs.passes.fp16 import LOWER, of_opset, to_lower
from mmdeploy_ext.graphs.passes.precision import with_fp16_metadata
from mmdeploy_ext.spec.metadata import BF16, entries_of
from mmdeploy_ext.spec.verdict import plain_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.spec.options import Options

Models = dict[str, onnx.ModelProto]
KEY = 'precision.plan'
CODES = '/codes', '.int'
"""Ends of the names of weights and biases in INT8."""
SEVEN_BITS = 63
"""Largest code of a weight with --reduce-range."""


@dataclasses.dataclass(frozen=True)
class KeptResults:
    """Results of PyTorch and a file on `samples`, and how many match; or a `metric` of both.

    `ties` lists the results that rounding decides, which are no loss.
    """

    matched: float
    total: float
    metric: str = ''
    samples: int = 0
    ties: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return 1 - self.total + self.matched if self.metric else self.matched / max(self.total, 1)

    @property
    def text(self) -> str:
        if self.metric:
            return f'{self.metric} {self.matched:.4f} (PyTorch {self.total:.4f})'
        where = f' on {self.samples} samples' if self.samples else ''
        if self.ties:
            where += f', {len(self.ties)} at a tie'
        return f'{self.matched:,} of {self.total:,} results ({100 * self.share:.2f} %){where}'


@dataclasses.dataclass(frozen=True)
class Row:
    """A unit above the requested precision, and why; `products`: its share of all."""

    unit: str
    precision: str
    reasons: tuple[str, ...]
    products: float


@dataclasses.dataclass
class Plan:
    """A plan and its results.

    Attributes:
        precisions: requested, lowest first.
        least: requested share of the results.
        kept: results with this plan, on samples that the search did not use.
        searched: on the samples of the search, as `before`: in float32, and `lowest`: all units in the
            lowest precision.
        rows: units in a higher precision.
        patterns: of float32 nodes, as in `--keep-fp32`.
        layers: in INT8.
        required: reason -> nodes in float32 in any plan.
        products: precision -> share of the multiplications.
        trials: runs over all samples; `cpu_s` seconds.
    """

    precisions: tuple[str, ...]
    least: float
    kept: KeptResults
    searched: KeptResults
    before: KeptResults
    lowest: KeptResults
    rows: list[Row]
    patterns: list[str]
    layers: list[str]
    required: dict[str, int]
    products: dict[str, float]
    trials: int = 0
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | dict(share=self.kept.share, simulated='on a CPU')


def written(
    models: Models,
    lower: str,
    patterns: Sequence[str],
    layers: Sequence[str] = (),
    quantiser: DenseQuantiser | None = None,
) -> Models:
    """The graphs with `layers` of the quantiser in INT8, all but `patterns` in 'fp16', 'bf16' or 'fp32'."""
    models = dict(models)
    if layers:
        graph = quantiser.graph
        models[graph.path] = graph.joined(quantiser.network(layers))
        nodes = graph.int8_nodes(layers, between=quantiser.outputs)
        patterns = ['QuantizeLinear', 'DequantizeLinear', *map(glob.escape, nodes), *patterns]
    if lower == 'fp32':
        return models
    return {path: to_lower(model, lower, patterns) for path, model in models.items()}


def with_plan(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Return a written graph with precision metadata: `precision.plan`, JSON, and entries for proofs.

    Pure float16 files record options for a fresh export; others record the change.
    """
    if 'fp16' in plan.precisions:
        model = with_fp16_metadata(model, False, plan.patterns, plan.least)
    result = copy.deepcopy(model)
    for precision, edit in dict(int8=QUANTISE, bf16=BF16).items():
        if precision in plan.precisions:
            edits.record(result, edit)
    result.metadata_props.add(key=KEY, value=json.dumps(plain_json(plan.to_json())))
    return result


@dataclasses.dataclass(frozen=True)
class WrittenPlan(JsonDataclass):
    """What a proof needs of a file's `Plan`."""

    precisions: tuple[str, ...]
    patterns: tuple[str, ...]
    layers: tuple[str, ...]


def plan_of(model: onnx.ModelProto, edits: Sequence[str]) -> WrittenPlan | None:
    """Return the plan of a bfloat16 or INT8 file that nothing else changed after its export."""
    text = entries_of(model.metadata_props).get(KEY)
    if not (text and edits and {*edits} <= {BF16, QUANTISE}):
        return None
    try:
        plan = parse_json(text)
        names = [field.name for field in dataclasses.fields(WrittenPlan)]
        return read(WrittenPlan, {name: plan[name] for name in names if name in plan})
    except (Mismatch, TypeError, ValueError) as error:
        raise ModelFileError(f'{KEY} in its metadata is damaged: {error}; export it again') from error


def before_plan(options: Options, edits: Sequence[str]) -> Options:
    """Return the options of the float32 export that a later plan changed."""
    single = dict(precision='fp32', fp16_io=False, keep_fp32=(), keep_results=0.0)
    return options.replace(**single) if edits else options


def with_plan_of(model: onnx.ModelProto, plan: WrittenPlan, fresh: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph in the precision of a file's plan, with the ranges of its calibration."""
    lower = next((name for name in plan.precisions if name in LOWER), 'fp32')
    fresh, quantiser, layers = of_opset(fresh, lower), None, []
    if is_quantised(model):
        quantiser = DenseQuantiser(DenseGraph(fresh, ''), _has_7_bits(model), outputs=False)
        layers = [layer.name for layer in quantiser.graph.layers if layer.name in plan.layers]
        inputs = (name for node in quantiser.graph.network.graph.node for name in node.input)
        quantiser.ranges = dict.fromkeys(inputs, (np.zeros(1), np.zeros(1))) | ranges_of(model)
    result = written({'': fresh}, lower, plan.patterns, layers, quantiser)['']
    return _with_roundings_of(model, result)


def quantised_as(model: onnx.ModelProto, fresh: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph quantised like a file of `quantize`, with the ranges of its calibration."""
    props = entries_of(model.metadata_props)
    try:
        has_7_bits, kept = '7 bits' in props['int8.weights'], ast.literal_eval(props['int8.float_layers'])
        kept = {*kept}
    except (LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ModelFileError(f'int8.* in its metadata is damaged: {error}; quantise it again') from error
    quantiser = DenseQuantiser(DenseGraph(fresh), has_7_bits)
    layers = [layer.name for layer in quantiser.graph.layers if layer.name not in kept]
    names = {name for node in quantiser.graph.network.graph.node for name in (*node.input, *node.output)}
    quantiser.ranges = dict.fromkeys(names, (np.zeros(1, np.float32), np.zeros(1, np.float32)))
    quantiser.ranges |= ranges_of(model)
    return _with_roundings_of(model, finish_model(quantiser.graph, quantiser.network(layers), {}))


def has_ranges(model: onnx.ModelProto) -> bool:
    return any(entry.key == RANGES for entry in model.metadata_props)


def _with_roundings_of(model: onnx.ModelProto, expected: onnx.ModelProto) -> onnx.ModelProto:
    """Put the file's weights in place of weights that differ by a step in few places.

    Engines fold weights with other roundings.
    """
    codes = _codes(model)
    for tensor in expected.graph.initializer:
        if tensor.name in codes and _is_rounding(codes[tensor.name], tensor):
            tensor.CopyFrom(codes[tensor.name])
    return expected


def _codes(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type in (TensorProto.INT8, TensorProto.INT32) and tensor.name.endswith(CODES)
    }


def _has_7_bits(model: onnx.ModelProto) -> bool:
    codes = (tensor for tensor in _codes(model).values() if tensor.data_type == TensorProto.INT8)
    return all(np.abs(numpy_helper.to_array(tensor)).max(initial=0) <= SEVEN_BITS for tensor in codes)


def ranges_of(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor -> range of the calibration; in a file of an older version of its scale."""
    for entry in model.metadata_props:
        if entry.key == RANGES:
            try:
                stored = parse_json(entry.value).items()
                return {name: (np.float32([low]), np.float32([high])) for name, (low, high) in stored}
            except (AttributeError, TypeError, ValueError) as error:
                raise ModelFileError(
                    f'{RANGES} in its metadata is damaged: {error}; quantise it again'
                ) from error
    index, found = Index(model), {}
    for node in model.graph.node:
        scale, zero = (index.constants.get(name) for name in (*node.input, '', '')[1:3])
        if node.op_type != 'QuantizeLinear' or scale is None or zero is None:
            continue
        lowest = -127 if zero.data_type == TensorProto.INT8 else 0
        codes = np.float64([lowest, lowest + 254 if lowest else 255]) - numpy_helper.to_array(zero)
        ends = np.float32(codes * numpy_helper.to_array(scale))
        name = node.input[0].removesuffix('.in')
        found[name] = ends[:1], ends[1:]
        position = index.producer(node.input[0])
        if position is not None and index.nodes[position].op_type == 'Cast':
            found[index.nodes[position].input[0]] = found[name]
    return found


def _is_rounding(codes: onnx.TensorProto, expected: onnx.TensorProto) -> bool:
    if codes.dims != expected.dims:
        return False
    steps = np.abs(numpy_helper.to_array(codes).astype(int) - numpy_helper.to_array(expected))
    return bool(steps.max(initial=0) <= 1 and np.count_nonzero(steps) <= 1 + steps.size // 1000)
