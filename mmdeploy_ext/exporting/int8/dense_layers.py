"""Layers of a dense graph that can be INT8, and the nodes between them."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
import re
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.base.errors import ModelFileError, UsageError
from mmdeploy_ext.graphs.io.index import Index, all_nodes, captured, did_you_mean, reads, refill
from mmdeploy_ext.graphs.part import part
from mmdeploy_ext.graphs.passes.fp16 import PRODUCTS
from mmdeploy_ext.graphs.run import typed_values

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        self.model = _with_initializers(model)
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


def _with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
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
