"""INT8 for dense graphs: ranges from samples, codes by ONNX Runtime's quantiser, as Q/DQ pairs.

For ONNX Runtime activations are uint8 and weights int8 per channel, for VNNI; int8 on both sides takes twice
the time there. `quantize_static` recalibrates per call: 0.55 s against 0.02 s for a layer of the ATSS toy.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.errors import ExportError, InferenceError, Mm2OnnxError
from mmdeploy_ext.exporting.int8 import DENSE_METHODS, PERCENTILE, digest, tracked
from mmdeploy_ext.exporting.int8.calibrators import make_calibrator
from mmdeploy_ext.exporting.int8.compact import compact
from mmdeploy_ext.exporting.int8.dense_layers import DenseGraph
from mmdeploy_ext.graphs import edits
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import reads, refill
from mmdeploy_ext.graphs.passes.fp16 import PRODUCTS
from mmdeploy_ext.graphs.run import Runner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

OPERATORS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul', 'Relu', 'Clip', 'MaxPool', 'Add', 'Resize')
INFERRED_KEY, INFERRED_VALUE = 'onnx.infer', 'onnxruntime.quant'
"""Metadata that marks a model as typed for the quantiser."""
MINMAX = DENSE_METHODS[0]
QUANTISE = 'quantize'
RANGES = 'int8.ranges'
"""Metadata: tensor -> smallest and largest value of the calibration, JSON."""
Range = tuple[np.ndarray, np.ndarray]
"""Smallest and largest value, float32, (1,) if measured, () if read from a file."""


class DenseQuantiser:
    """Quantises layers of a graph with the ranges of one calibration.

    Attributes:
        graph: float model; layers of its `network` are quantised.
        reduce_range: 7-bit weights, for CPUs without VNNI, which saturate at 16 bits.
        outputs: round activations to uint8, also outputs and biases of layers and nodes between layers, as
            ONNX Runtime needs it to compute in INT8. Otherwise round inputs of layers alone, to int8 with
            zero point 0, as TensorRT needs it.
        ranges: tensor -> range.
        seen: digests of the calibration's inputs.
    """

    def __init__(self, graph: DenseGraph, reduce_range: bool = False, outputs: bool = True) -> None:
        self.graph, self.reduce_range, self.outputs = graph, reduce_range, outputs
        self.ranges: dict[str, Range] = {}
        self.seen: set[bytes] = set()
        self._infinite: set[str] = set()
        self._typed_network = _with_types(graph.network)

    def calibrate(
        self,
        batches: Iterable[Mapping[str, np.ndarray]],
        method: str = MINMAX,
        percentile: float = PERCENTILE,
    ) -> None:
        """Measure the range of every activation of `OPERATORS`.

        'percentile' and 'mse' iterate `batches` (input name -> array) twice. Tensors with infinity
        or only NaN get no range; only 'minmax' skips single NaN.
        """
        input_names = [value.name for value in self.graph.network.graph.input]

        def feeds(title: str) -> Iterator[dict[str, np.ndarray]]:
            for batch in tracked(batches, title):
                feed = {name: batch[name] for name in input_names}
                self.seen.add(digest(max(feed.values(), key=lambda array: array.nbytes)))
                yield feed

        ranges = _minmax_ranges(self._typed_network, feeds('calibrating'))
        self.ranges = {name: ends for name, ends in ranges.items() if np.isfinite(ends).all()}
        self._infinite = ranges.keys() - self.ranges.keys()
        if method == MINMAX:
            return
        calibrators = {name: make_calibrator(method, percentile) for name in self.ranges}
        runner = Runner(self.graph.network, list(calibrators))
        for feed in feeds('histograms'):
            for name, values in runner.run(feed).items():
                try:
                    calibrators[name].collect(values)
                except ValueError:  # NaN, skipped by ONNX Runtime's minimum and maximum
                    self._infinite.add(name)
        self.ranges = {name: ends for name, ends in self.ranges.items() if name not in self._infinite}
        for name, (low, high) in self.ranges.items():
            bound = np.asarray(calibrators[name].amax(), low.dtype)
            if bound > 0:
                self.ranges[name] = (np.maximum(low, -bound), np.minimum(high, bound))

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The network with these layers (`Layer.name`) in INT8.

        InferenceError: an activation of these layers is not finite.
        """
        if not layers:
            return copy.deepcopy(self.graph.network)
        nodes = self._int8_nodes(layers)
        for node in nodes:
            if infinite := [name for name in (*node.input, *node.output) if name in self._infinite]:
                raise InferenceError(
                    f'tensor {infinite[0]!r} of node {node.name} is not finite on the calibration images; '
                    'check its weights, or keep the layer in float with --keep-float'
                )
        return self._integer(nodes) if self.outputs else self._rounded({node.name for node in nodes})

    def errors(self, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Layer -> largest error that rounding its inputs adds, over the spread of its values."""
        layers, names = self.graph.layers, {value.name for value in self.graph.network.graph.input}
        network = self._rounded({node for layer in layers for node in layer.nodes}, beside=True)
        outputs = [name for layer in layers for name in layer.outputs]
        runner = Runner(network, [*outputs, *map('{}/int8'.format, outputs)])
        errors = dict.fromkeys((layer.name for layer in layers), 0.0)
        for batch in batches:
            arrays = runner.run({name: batch[name] for name in names})
            for layer in layers:
                for name in layer.outputs:
                    spread = max(np.linalg.norm(arrays[name] - arrays[name].mean()), 1e-30)
                    error = np.linalg.norm(arrays[f'{name}/int8'] - arrays[name]) / spread
                    errors[layer.name] = max(errors[layer.name], float(error))
        return errors

    def _rounded(self, layer_nodes: Collection[str], beside: bool = False) -> onnx.ModelProto:
        """The network with Q/DQ at the inputs and weights of nodes; `beside`: of copies that write X/int8."""
        network = copy.deepcopy(self.graph.network)
        graph, nodes, rounded = network.graph, [], {}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            is_layer = node.name in layer_nodes
            if is_layer and beside:
                nodes.append(copy.deepcopy(node))
                node.name, node.output[0] = '', f'{node.output[0]}/int8'
            for place in (0, PRODUCTS[node.op_type]) if is_layer else ():
                name = node.input[place]
                if name not in rounded:
                    rounded[name] = f'{name}/rounded'
                    array = numpy_helper.to_array(constants[name]) if name in constants else None
                    added, arrays = self.rounding(node, name, rounded[name], array)
                    nodes += added
                    graph.initializer.extend(arrays)
                node.input[place] = rounded[name]
            nodes.append(node)
        read = {name for node in nodes for name in reads(node)} | {value.name for value in graph.output}
        refill(graph, node=nodes, initializer=[one for one in graph.initializer if one.name in read])
        return network

    def rounding(
        self, node: onnx.NodeProto, name: str, rounded: str, weight: np.ndarray | None
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Nodes and constants that round an input of a product to 8 bits, or its `weight` per channel."""
        ends = [f'{rounded}/scale', f'{rounded}/zero']
        if weight is None:
            largest = max(float(np.abs(end).max()) for end in self.ranges[name])
            arrays = np.float32(max(largest, 1e-30) / 127), np.int8(0)
            nodes = [helper.make_node('QuantizeLinear', [name, *ends], [f'{rounded}/codes'])]
            axis = {}
        else:
            axis = dict(axis=_channel_axis(node, weight.ndim))
            others = tuple(place for place in range(weight.ndim) if place != axis['axis'])
            scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-30)
            scale /= 63 if self.reduce_range else 127
            codes = np.rint(weight / scale).astype(np.int8)
            scale = np.float32(scale.ravel())
            arrays, nodes = (scale, np.zeros(len(scale), np.int8), codes), []
            ends.append(f'{rounded}/codes')
        nodes.append(helper.make_node('DequantizeLinear', [f'{rounded}/codes', *ends[:2]], [rounded], **axis))
        return nodes, list(map(numpy_helper.from_array, map(np.asarray, arrays), ends))

    def _integer(self, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData
        from onnxruntime.quantization.calibrate import CalibrationMethod

        with suppress_output():
            quantiser = QDQQuantizer(
                copy.deepcopy(self._typed_network),
                per_channel=True,
                reduce_range=self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
                nodes_to_quantize=[node.name for node in nodes],
                nodes_to_exclude=[],
                op_types_to_quantize=list(OPERATORS),
                extra_options={},
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        # ONNX Runtime's own function also removes Constant nodes that bodies (Loop) read
        network = quantiser.model.model
        used = {name for node in network.graph.node for name in reads(node)}
        used |= {value.name for value in network.graph.output}
        refill(
            network.graph,
            node=[
                node
                for node in network.graph.node
                if node.op_type != 'Constant' or used.intersection(node.output)
            ],
        )
        return network

    def _int8_nodes(self, layers: Sequence[str]) -> list[onnx.NodeProto]:
        names = set(self.graph.int8_nodes(layers, between=self.outputs))
        return [node for node in self.graph.network.graph.node if node.name in names]


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == 'Gemm':
        return 0 if any(entry.name == 'transB' and entry.i for entry in node.attribute) else 1
    return dict(Conv=0, ConvTranspose=1).get(node.op_type, rank - 1)


def layers_in_int8(graph: DenseGraph, network: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Layers with int8 weights in a quantised network; ExportError: none."""
    producers = {name: node.op_type for node in network.graph.node for name in node.output}
    int8_nodes = {
        node.name
        for node in network.graph.node
        if node.op_type in PRODUCTS
        and producers.get(node.input[PRODUCTS[node.op_type]]) == 'DequantizeLinear'
    }
    int8_layers = [name for name in layers if int8_nodes.issuperset(graph.layer(name).nodes)]
    if not int8_layers:
        raise ExportError(
            f'none of the {len(layers)} layers is in INT8 after quantising, so no file was written; check '
            '--keep-float and the weights'
        )
    return int8_layers


def finish_model(graph: DenseGraph, network: onnx.ModelProto, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Copy the model with an INT8 network, compacted, and `facts` as metadata `int8.KEY`."""
    model = compact(graph.joined(network))
    for key, value in facts.items():
        model.metadata_props.add(key=f'int8.{key}', value=str(value))
    return model


def store_ranges(model: onnx.ModelProto, quantiser: DenseQuantiser) -> None:
    graph = quantiser.graph
    in_int8 = {*graph.int8_nodes([layer.name for layer in graph.layers])}
    nodes = [node for node in graph.network.graph.node if node.name in in_int8]
    names = {name for node in nodes for name in (*node.input, *node.output)}
    ranges = {
        name: [float(np.ravel(end)[0]) for end in ends]
        for name, ends in quantiser.ranges.items()
        if name in names
    }
    model.metadata_props.add(key=RANGES, value=json.dumps(ranges))


def _with_types(network: onnx.ModelProto) -> onnx.ModelProto:
    model = copy.deepcopy(network)
    graph = model.graph
    declared = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    nodes = [node for node in graph.node if node.op_type in OPERATORS]
    names = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    type_of = types.infer(model)
    del graph.value_info[:]
    model.metadata_props.add(key=INFERRED_KEY, value=INFERRED_VALUE)
    for name in names:
        if name not in declared and name in type_of:
            graph.value_info.add(name=name, type=type_of[name])
    return model


def _minmax_ranges(model: onnx.ModelProto, feeds: Iterator[dict[str, np.ndarray]]) -> dict[str, Range]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder, suppress_output():
        path = Path(folder) / 'network.onnx'
        model = copy.deepcopy(model)  # saving moves weights out of the model
        try:
            onnx.save_model(model, str(path), save_as_external_data=True)
            calibrator = create_calibrator(
                path,
                OPERATORS,
                str(Path(folder) / 'ranges.onnx'),
                CalibrationMethod.MinMax,
                use_external_data_format=True,
            )
            calibrator.collect_data(Reader())
            ranges = calibrator.compute_data().data
        except OSError as error:
            raise Mm2OnnxError(
                f'{folder}: the temporary copy of the network could not be written '
                f'({error.strerror or error}); free some space, or set TMPDIR to a folder with more'
            ) from error
        except Exception as error:
            if not type(error).__module__.startswith('onnxruntime'):
                raise
            raise InferenceError(f'ONNX Runtime cannot run the network to measure ranges: {error}') from error
    return {name: (np.asarray(ends.lowest), np.asarray(ends.highest)) for name, ends in ranges.items()}


def record(model: onnx.ModelProto, quantiser: object) -> None:
    """Note the change of a model, and the calibration's ranges, which proofs compare with its scales."""
    is_ours = isinstance(quantiser, DenseQuantiser)
    if is_ours:
        store_ranges(model, quantiser)
    edits.record(model, QUANTISE if is_ours else f'{QUANTISE} --engine openvino')
