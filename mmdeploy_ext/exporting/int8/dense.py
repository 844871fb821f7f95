"""INT8 for dense graphs: ranges from samples, codes by ONNX Runtime's quantiser, as Q/DQ pairs.

For ONNX Runtime activations are uint8 and weights int8 per channel, for VNNI; int8 on both sides takes twice
the time there. `quantize_static` recalibrates per call: 0.55 s against 0.02 s for a layer of the ATSS toy.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import itertools
import json
import math
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.errors import ExportError, InferenceError, Mm2OnnxError, ModelFileError, UsageError
from mmdeploy_ext.exporting.int8 import DENSE_METHODS, PERCENTILE, digest, tracked
from mmdeploy_ext.exporting.int8.calibrators import make_calibrator
from mmdeploy_ext.graphs import edits
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index, all_nodes, captured, did_you_mean, reads, refill
from mmdeploy_ext.graphs.part import part
from mmdeploy_ext.graphs.passes.fp16 import PRODUCTS
from mmdeploy_ext.graphs.passes.rename import all_tensor_names, rename_tensors
from mmdeploy_ext.graphs.run import Runner, typed_values

# Shrinks an INT8 file: merges equal initializers, shortens names (0.1 MB).


SHORT_SUFFIXES = {
    '_QuantizeLinear_Output': '.q',
    '_DequantizeLinear_Output': '.dq',
    '_QuantizeLinear_Input': '.in',
    '_QuantizeLinear': '.Q',
    '_DequantizeLinear': '.DQ',
    '_quantized_scale': '.qs',
    '_quantized_zero_point': '.qz',
    '_quantized': '.int',
    '_zero_point': '.z',
    '_scale': '.s',
}
"""Suffix of ONNX Runtime's quantiser -> short suffix; the first match counts."""


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with equal initializers merged ('c0', ...) and names of `SHORT_SUFFIXES` shortened.

    Inputs, outputs and tensors read by bodies keep names; drops `value_info`.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.value_info[:]
    fixed = {value.name for value in (*graph.input, *graph.output)}
    fixed |= {name for node in graph.node for name in captured(node)}
    _merge_constants(graph, fixed, set(all_tensor_names(result)))
    names_in_graph = (name for name in Index(result).tensors if name not in fixed)
    tensors = _short_names(names_in_graph, set(all_tensor_names(result)))
    rename_tensors(graph, lambda name: tensors.get(name, name))
    names = [node.name for node in graph.node]
    short_names = _short_names(names, set(names))
    for node in graph.node:
        node.name = short_names.get(node.name, node.name)
    return result


def _merge_constants(graph: onnx.GraphProto, fixed: set[str], used_names: set[str]) -> None:
    groups: dict[tuple[object, ...], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        is_text = tensor.data_type == TensorProto.STRING  # an array of texts holds addresses, not texts
        values = tuple(tensor.string_data) if is_text else numpy_helper.to_array(tensor).tobytes()
        fixed_name = tensor.name if tensor.name in fixed else ''
        groups.setdefault((tensor.data_type, *tensor.dims, fixed_name, values), []).append(tensor)
    new_names = (name for name in map('c{}'.format, itertools.count()) if name not in used_names)
    merged: dict[str, str] = {}
    for tensors in groups.values():
        if len(tensors) > 1:
            merged |= dict.fromkeys([tensor.name for tensor in tensors], next(new_names))
    refill(graph, initializer=[tensors[0] for tensors in groups.values()])
    rename_tensors(graph, lambda name: merged.get(name, name))


def _short_names(names: Iterable[str], used_names: set[str]) -> dict[str, str]:
    renamed = {}
    for name in names:
        suffix = next((suffix for suffix in SHORT_SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            continue
        short = name.removesuffix(suffix) + SHORT_SUFFIXES[suffix]
        if short not in used_names:
            renamed[name] = short
            used_names.add(short)
    return renamed


# Layers of a dense graph that can be INT8, and the nodes between them.


POSTPROCESS = ('postprocess/', 'decode/')
"""Prefixes of post-processing nodes; their constants are not weights."""
FOLLOWERS = ('Relu', 'Clip', 'MaxPool')
"""Operators that are INT8 if their input is."""
INT8_OPERATORS = ('QuantizeLinear', 'DequantizeLinear', 'QLinearConv', 'QLinearMatMul', 'ConvInteger')
SORTS = ('TopK',)
SMALLEST_OPSET = 13
"""First opset with QuantizeLinear's axis, for scales per channel."""
COUNTER = re.compile(r'_\d+$')
"""Counter that exporters add to a node's name."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """The nodes that share one weight, such as a head on several levels.

    Attributes:
        name: module, from the first node's name, with apostrophes if repeated.
        parameters: values of the weight.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int


class DenseGraph:
    """A float model in two parts: the network, up to the last layers, and the rest.

    Attributes:
        path: of the file, or a title.
        model: copy with constants as initializers and unique names of nodes.
        network: ends in the last layers; outputs theirs, and tensors for the rest.
        layers: in file order.
        last: layers before no other layer, or before a top-k: logits, deltas, kernels, masks.
        compared: layers of `last` with values in a fixed order, or all. Rows after a top-k (RT-DETR's
            queries) vary.

    Raises:
        ModelFileError: quantised, too old an opset, or no layers.
    """

    def __init__(self, model: onnx.ModelProto, path: object = 'the model') -> None:
        if is_quantised(model):
            raise ModelFileError(f'{path}: is already quantised; pass its float32 file')
        opset = next((entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')), 0)
        if opset < SMALLEST_OPSET:
            raise ModelFileError(
                f'{path}: has opset {opset}, but scales per channel need opset {SMALLEST_OPSET} or later: '
                'export it again with --opset-version 17'
            )
        self.path, self.model = str(path), with_initializers(model)
        self.index = Index(self.model)
        self.layers = _find_layers(self.index)
        if not self.layers:
            raise ModelFileError(
                f'{path}: has no convolution or matrix product with float32 weights; nothing to quantise'
            )
        self._by_name = {layer.name: layer for layer in self.layers}
        layer_of = {node: layer.name for layer in self.layers for node in layer.nodes}
        inputs = (name for node in self.index.nodes if node.name in layer_of for name in node.input)
        followed = {
            layer_of.get(self.index.nodes[position].name) for position in self.index.ancestors(inputs)
        }
        sorted_layers = self._sorted_layers()
        self.last = [layer.name for layer in self.layers if layer.name not in followed - sorted_layers]
        self._positions = self.index.ancestors(name for layer in self.layers for name in layer.outputs)
        self.compared = [name for name in self.last if not self._follows_sort(name)] or self.last
        self.network = self._cut_network()

    def layer(self, name: str) -> Layer:
        return self._by_name[name]

    def _sorted_layers(self) -> set[str]:
        tensors = {name for node in self.index.nodes if node.op_type in SORTS for name in node.input}
        layer_of = {name: layer.name for layer in self.layers for name in layer.outputs}
        between = self.index.ancestors(list(tensors), layer_of)
        tensors |= {name for position in between for name in self.index.reads(position)}
        return {layer_of[name] for name in tensors if name in layer_of}

    def _follows_sort(self, layer: str) -> bool:
        ancestors = self.index.ancestors(self.layer(layer).outputs)
        return any(self.index.nodes[position].op_type in SORTS for position in ancestors)

    def _cut_network(self) -> onnx.ModelProto:
        positions, index = set(self._positions), self.index
        network_reads = {name for position in positions for name in index.reads(position)}
        rest_reads = set(index.outputs)
        for position in range(len(index.nodes)):
            if position not in positions:
                rest_reads.update(index.reads(position))
        last_outputs = {name for layer in self.layers for name in layer.outputs if layer.name in self.last}
        outputs = [
            name
            for position in self._positions
            for name in index.writes(position)
            if name in rest_reads | last_outputs
        ]
        inputs = [value for value in index.graph.input if value.name in network_reads]
        return part(index, self._positions, inputs, typed_values(index, outputs))

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Layers with a name, or node name, that matches a pattern ('*', '?', '[ab]')."""
        matches: set[str] = set()
        for pattern in patterns:
            match = re.compile(fnmatch.translate(pattern)).match
            layers = {layer.name for layer in self.layers if any(map(match, (layer.name, *layer.nodes)))}
            if not layers:
                raise UsageError(
                    f'--keep-float {pattern!r}: matches no layer{did_you_mean(pattern, self._by_name)}; '
                    f'there are {len(self.layers)} layers, such as {self.layers[0].name!r}'
                )
            matches |= layers
        return [layer.name for layer in self.layers if layer.name in matches]

    def int8_nodes(self, layers: Iterable[str], between: bool = True) -> list[str]:
        """Nodes to quantise: the layers', and with `between` later nodes that stay INT8.

        Later nodes are `FOLLOWERS`, Resize 'nearest', and additions of INT8 tensors.
        """
        layer_nodes = {node for name in layers for node in self.layer(name).nodes}
        int8_tensors: set[str] = set()
        nodes = []
        for position in self._positions:
            node = self.index.nodes[position]
            if node.name in layer_nodes or (between and _stays_int8(node, int8_tensors)):
                nodes.append(node.name)
                int8_tensors.update(node.output)
        return nodes

    def joined(self, network: onnx.ModelProto) -> onnx.ModelProto:
        """Copy the model with a quantised network made of `self.network`."""
        positions = set(self._positions)
        rest = [node for position, node in enumerate(self.index.nodes) if position not in positions]
        model = copy.deepcopy(self.model)
        for field in ('node', 'initializer', 'value_info'):
            model.graph.ClearField(field)
        model.graph.node.extend([*network.graph.node, *rest])
        model.graph.initializer.extend(network.graph.initializer)
        present = {tensor.name for tensor in network.graph.initializer}
        needed = {name for node in rest for name in reads(node)} | set(self.index.outputs)
        needed.update(value.name for value in model.graph.input)  # the network lacks their defaults
        model.graph.initializer.extend(
            tensor for name, tensor in self.index.constants.items() if name in needed - present
        )
        domains = {entry.domain for entry in model.opset_import}
        model.opset_import.extend(entry for entry in network.opset_import if entry.domain not in domains)
        return model


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a model has one of `INT8_OPERATORS`, even in bodies."""
    return any(node.op_type in INT8_OPERATORS for node in all_nodes(model))


def with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    result = copy.deepcopy(model)
    graph = result.graph
    constants = {tensor.name for tensor in graph.initializer}
    fixed = {value.name for value in graph.output} | {name for node in graph.node for name in captured(node)}
    nodes, sources, names = [], {}, set()
    for position, node in enumerate(graph.node):
        if (
            node.op_type == 'Constant'
            and node.attribute
            and node.attribute[0].name == 'value'
            and node.output[0] not in fixed
        ):
            graph.initializer.add().CopyFrom(helper.get_attribute_value(node.attribute[0]))
            graph.initializer[-1].name = node.output[0]
            constants.add(node.output[0])
            continue
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
        if node.op_type == 'Identity' and node.input[0] in constants and node.output[0] not in fixed:
            sources[node.output[0]] = node.input[0]
            continue
        if not node.name or node.name in names:
            node.name = f'{node.name or node.op_type}#{position}'
        names.add(node.name)
        nodes.append(node)
    refill(graph, node=nodes)
    return result


def _find_layers(index: Index) -> list[Layer]:
    nodes_of_weight: dict[str, list[onnx.NodeProto]] = {}
    for node in index.nodes:
        if weight := _weight_name(index, node):
            nodes_of_weight.setdefault(weight, []).append(node)
    layers: dict[str, Layer] = {}
    for weight, nodes in nodes_of_weight.items():
        name, parameters = nodes[0].name.strip('/'), math.prod(index.constants[weight].dims)
        module, _, last_part = name.rpartition('/')
        if module and COUNTER.sub('', last_part) == nodes[0].op_type:
            name = module  # 'network/neck/conv' of 'network/neck/conv/Conv_1'
        while name in layers:
            name += "'"
        node_names, outputs = zip(*((node.name, node.output[0]) for node in nodes), strict=True)
        layers[name] = Layer(name, nodes[0].op_type, node_names, outputs, parameters)
    return list(layers.values())


def _weight_name(index: Index, node: onnx.NodeProto) -> str:
    weight_input = PRODUCTS.get(node.op_type)
    if weight_input is None or node.name.startswith(POSTPROCESS) or len(node.input) <= weight_input:
        return ''
    tensor = index.constants.get(node.input[weight_input])
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
        return ''
    return tensor.name if node.input[0] not in index.constants else ''


def _stays_int8(node: onnx.NodeProto, int8_tensors: set[str]) -> bool:
    if node.op_type == 'Add':
        return all(name in int8_tensors for name in node.input)
    if node.op_type == 'Resize':
        mode = next((attribute.s for attribute in node.attribute if attribute.name == 'mode'), b'nearest')
        return mode == b'nearest' and node.input[0] in int8_tensors
    return node.op_type in FOLLOWERS and node.input[0] in int8_tensors


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
