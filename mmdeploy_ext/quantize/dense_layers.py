"""Layers of a dense graph: what can be INT8, what follows in INT8, what stays float. Needs onnx only."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
import re
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.graph.io.index import Index, all_nodes, captured, did_you_mean, reads, refill
from mmdeploy_ext.graph.part import part
from mmdeploy_ext.graph.passes.fp16 import PRODUCTS
from mmdeploy_ext.graph.run import typed_values

if TYPE_CHECKING:
    from collections.abc import Iterable

POSTPROCESS = ('postprocess/', 'decode/')
"""Beginnings of the names of nodes that finish what the network gives: matrices there are no weights."""
FOLLOWERS = ('Relu', 'Clip', 'MaxPool')
"""Operators that are INT8 where their input is."""
QUANTISED = ('QuantizeLinear', 'DequantizeLinear', 'QLinearConv', 'QLinearMatMul', 'ConvInteger')
SORTS = ('TopK',)
"""Operators that give rows in an order of their own."""
SMALLEST_OPSET = 13
"""The first whose QuantizeLinear has an axis, which scales per channel need."""
COUNTER = re.compile(r'_\d+$')


@dataclasses.dataclass(frozen=True)
class Layer:
    """The nodes that multiply with one weight; several where a head runs on several levels.

    Attributes:
        name: of the module, from the first node's name.
        operator: Conv, Gemm ...
        nodes, outputs: the names of the nodes, and of the tensors that they write.
        parameters: of the weight.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int


class DenseGraph:
    """A float model in two parts: the network, up to the last layers, and the rest.

    Attributes:
        model: the whole model, its constants as initializers, every node with a name of its own.
        network: the part that ends in the last layers; its outputs are what the rest reads.
        layers: in file order.
        last: names of the layers that no other layer follows, or whose values a top-k sorts: they give
            logits, deltas, kernels, masks.
        compared: those of `last` whose values can be compared one by one. What follows a top-k inside the
            network (RT-DETR's queries) is in an order that rounding changes.

    Args:
        model: stays as it is.
        path: of it, for messages.

    Raises:
        ModelFileError: quantised already, of an opset without scales per channel, or without a layer.
    """

    def __init__(self, model: onnx.ModelProto, path: object = 'the model') -> None:
        _check(model, path)
        self.model = _prepared(model)
        self.index = Index(self.model)
        self.layers = _layers(self.index)
        if not self.layers:
            raise ModelFileError(
                f'{path}: has no convolution or matrix product with float32 weights; nothing to quantise'
            )
        self._by_name = {layer.name: layer for layer in self.layers}
        owner = {node: layer.name for layer in self.layers for node in layer.nodes}
        read = (name for node in self.index.nodes if node.name in owner for name in node.input)
        after = {owner.get(self.index.nodes[position].name) for position in self.index.ancestors(read)}
        sorts = [node for node in self.index.nodes if node.op_type in SORTS]
        sorted_by = self._nearest([name for node in sorts for name in node.input])
        self.last = [layer.name for layer in self.layers if layer.name not in after - sorted_by]
        self._positions = self.index.ancestors(name for layer in self.layers for name in layer.outputs)
        self.compared = [name for name in self.last if not self._is_sorted(name)] or self.last
        self.network = self._network()

    def layer(self, name: str) -> Layer:
        """Return a layer by its name."""
        return self._by_name[name]

    def _nearest(self, tensors: Iterable[str]) -> set[str]:
        """Return the layers that tensors are made of with no other layer between."""
        made = {name: layer.name for layer in self.layers for name in layer.outputs}
        above = self.index.ancestors(tensors, made)
        read = {name for position in above for name in self.index.reads(position)} | set(tensors)
        return {made[name] for name in read if name in made}

    def _is_sorted(self, layer: str) -> bool:
        """Return whether a layer needs what a top-k gave."""
        above = self.index.ancestors(self.layer(layer).outputs)
        return any(self.index.nodes[position].op_type in SORTS for position in above)

    def _network(self) -> onnx.ModelProto:
        inside, index = set(self._positions), self.index
        made = [name for position in self._positions for name in index.writes(position)]
        outside = set(index.outputs)
        outside.update(name for at in range(len(index.nodes)) if at not in inside for name in index.reads(at))
        ends = {name for layer in self.layers for name in layer.outputs if layer.name in self.last}
        outputs = [name for name in made if name in outside | ends]
        read = {name for position in self._positions for name in index.reads(position)}
        inputs = [value for value in index.graph.input if value.name in read]
        return part(index, self._positions, inputs, typed_values(index, outputs))

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Return the layers whose name, or the name of one of their nodes, fits a pattern ('*', '?').

        A pattern that fits none is a UsageError.
        """
        found: set[str] = set()
        for pattern in patterns:
            fits = re.compile(fnmatch.translate(pattern)).match
            fitting = {layer.name for layer in self.layers if any(map(fits, (layer.name, *layer.nodes)))}
            if not fitting:
                raise UsageError(
                    f'--keep-float {pattern!r}: fits the name of no layer'
                    f'{did_you_mean(pattern, self._by_name)}; there are {len(self.layers)}, '
                    f'such as {self.layers[0].name!r}'
                )
            found |= fitting
        return [layer.name for layer in self.layers if layer.name in found]

    def int8_nodes(self, layers: Iterable[str]) -> list[str]:
        """Return the nodes to quantise: those of the layers, and what stays INT8 between them.

        An addition is where both sides are; a constant that is added (the shift of a normalisation) is not.
        """
        wanted = {node for name in layers for node in self.layer(name).nodes}
        codes: set[str] = set()
        nodes = []
        for position in self._positions:
            node = self.index.nodes[position]
            if node.name in wanted or _follows(node, codes):
                nodes.append(node.name)
                codes.update(node.output)
        return nodes

    def joined(self, network: onnx.ModelProto) -> onnx.ModelProto:
        """Return the whole model with its network replaced by one that was made of it."""
        inside = set(self._positions)
        rest = [node for at, node in enumerate(self.index.nodes) if at not in inside]
        model = copy.deepcopy(self.model)
        for field in ('node', 'initializer', 'value_info'):
            model.graph.ClearField(field)
        model.graph.node.extend([*network.graph.node, *rest])
        model.graph.initializer.extend(network.graph.initializer)
        known = {tensor.name for tensor in network.graph.initializer}
        needed = {name for node in rest for name in reads(node)} | set(self.index.outputs)
        model.graph.initializer.extend(
            tensor for name, tensor in self.index.constants.items() if name in needed - known
        )
        domains = {entry.domain for entry in model.opset_import}
        model.opset_import.extend(entry for entry in network.opset_import if entry.domain not in domains)
        return model


def is_quantised(model: onnx.ModelProto) -> bool:
    """Return whether a model has INT8 operators already."""
    return any(node.op_type in QUANTISED for node in all_nodes(model))


def _check(model: onnx.ModelProto, path: object) -> None:
    if is_quantised(model):
        raise ModelFileError(f'{path}: is quantised already; give the float32 file that it was made of')
    opset = next((entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')), 0)
    if opset < SMALLEST_OPSET:
        raise ModelFileError(
            f'{path}: is of opset {opset}; scales per channel need opset {SMALLEST_OPSET} or later: export '
            f'it again with --opset-version 17'
        )


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose constants are initializers and whose nodes have names of their own."""
    result = copy.deepcopy(model)
    graph = result.graph
    constants = {tensor.name for tensor in graph.initializer}
    fixed = {value.name for value in graph.output} | {name for node in graph.node for name in captured(node)}
    nodes, same, taken = [], {}, set()
    for position, node in enumerate(graph.node):
        value = _value(node)
        if value is not None and node.output[0] not in fixed:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
            constants.add(node.output[0])
            continue
        for at, name in enumerate(node.input):
            node.input[at] = same.get(name, name)
        if node.op_type == 'Identity' and node.input[0] in constants and node.output[0] not in fixed:
            same[node.output[0]] = node.input[0]
            continue
        if not node.name or node.name in taken:
            node.name = f'{node.name or node.op_type}#{position}'
        taken.add(node.name)
        nodes.append(node)
    refill(graph, node=nodes)
    return result


def _value(node: onnx.NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node."""
    if node.op_type != 'Constant' or not node.attribute or node.attribute[0].name != 'value':
        return None
    return helper.get_attribute_value(node.attribute[0])


def _layers(index: Index) -> list[Layer]:
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in index.nodes:
        weight = _weight(index, node)
        if weight:
            groups.setdefault(weight, []).append(node)
    found: dict[str, Layer] = {}
    for weight, nodes in groups.items():
        name, size = _scope(nodes[0]), math.prod(index.constants[weight].dims)
        while name in found:
            name += "'"
        names, outputs = zip(*((node.name, node.output[0]) for node in nodes), strict=True)
        found[name] = Layer(name, nodes[0].op_type, names, outputs, size)
    return list(found.values())


def _weight(index: Index, node: onnx.NodeProto) -> str:
    place = PRODUCTS.get(node.op_type)
    if place is None or node.name.startswith(POSTPROCESS) or len(node.input) <= place:
        return ''
    tensor = index.constants.get(node.input[place])
    matrix = tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2
    return tensor.name if matrix and node.input[0] not in index.constants else ''


def _scope(node: onnx.NodeProto) -> str:
    """Return the module of a node: 'network/neck/conv/Conv_1' -> 'network/neck/conv'."""
    head, _, tail = node.name.strip('/').rpartition('/')
    return head if head and COUNTER.sub('', tail) == node.op_type else node.name.strip('/')


def _follows(node: onnx.NodeProto, codes: set[str]) -> bool:
    if node.op_type == 'Add':
        return all(name in codes for name in node.input)
    if node.op_type == 'Resize':
        mode = next((attribute.s for attribute in node.attribute if attribute.name == 'mode'), b'nearest')
        return mode == b'nearest' and node.input[0] in codes
    return node.op_type in FOLLOWERS and node.input[0] in codes
