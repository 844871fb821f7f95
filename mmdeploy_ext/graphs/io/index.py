"""An index of the nodes that write and read every tensor of a graph, their operators and constants."""

import collections
import copy
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, helper, numpy_helper

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ModelFileError, UsageError, did_you_mean

_DRAWS = ('RandomNormal', 'RandomNormalLike', 'RandomUniform', 'RandomUniformLike')
RANDOM = ('Bernoulli', 'Multinomial', *_DRAWS)
"""Operators that draw random numbers; engines draw other numbers from the same seed."""


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the branches of If and the bodies of Loop and Scan of a node."""
    for attribute in node.attribute:
        if attribute.HasField('g'):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(
    model: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions and every body in them."""
    waiting = [model.graph, *model.functions] if isinstance(model, onnx.ModelProto) else [model]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(body for node in graph.node for body in bodies(node))


def all_nodes(model: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for graph in all_graphs(model):
        yield from graph.node


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant tensor: initializers and attributes, also of bodies and functions."""
    for graph in all_graphs(model):
        yield from getattr(graph, 'initializer', ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField('t'):
                    yield attribute.t
                yield from attribute.tensors


def captured(node: onnx.NodeProto) -> list[str]:
    """Return the outer tensors that a node's bodies use, each once."""
    names: list[str] = []
    for body in bodies(node):
        inner = {'', *(value.name for value in (*body.input, *body.initializer))}
        inner.update(name for inner_node in body.node for name in inner_node.output)
        inputs = [name for inner_node in body.node for name in reads(inner_node)]
        names += [name for name in (*inputs, *(value.name for value in body.output)) if name not in inner]
    return list(dict.fromkeys(names))


def reads(node: onnx.NodeProto) -> list[str]:
    """Return every tensor that a node needs: its inputs, then the outer tensors of its bodies."""
    return list(dict.fromkeys([name for name in node.input if name] + captured(node)))


def writes(node: onnx.NodeProto) -> list[str]:
    """Return a node's outputs without omitted ones."""
    return [name for name in node.output if name]


def refill(message: Message, **fields: Iterable[Message]) -> None:
    """Replace the entries of repeated fields of a protobuf message, in place."""
    for name, entries in fields.items():
        copies = copy.deepcopy(list(entries))
        message.ClearField(name)
        getattr(message, name).extend(copies)


def node_label(nodes: Sequence[onnx.NodeProto], position: int) -> str:
    """Return the name of a node, or '#12 (Conv)'."""
    node = nodes[position]
    return node.name or f'#{position} ({node.op_type})'


def operator_name(node: onnx.NodeProto) -> str:
    """Return 'Conv', or 'my.domain.Conv' for another domain."""
    return f'{node.domain}.{node.op_type}' if node.domain not in ('', 'ai.onnx') else node.op_type


def free_name(name: str, used_names: Collection[str]) -> str:
    """Return `name` with '_inner' and as many '_' as make it unused."""
    name = f'{name}_inner'
    while name in used_names:
        name += '_'
    return name


def claim_name(name: str, used_names: set[str]) -> str:
    """`free_name`, and mark the result as used."""
    used_names.add(name := free_name(name, used_names))
    return name


def join_names(names: Sequence[str], limit: int) -> str:
    """Join the first `limit` names by commas, then ' and 3 more'."""
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


class Index:
    """A graph, looked up by tensor and by node.

    Attributes:
        model: must not change while the index is used; `graph` is its main graph.
        nodes: nodes of the main graph; functions take a node's position in it.
        inputs: names of the graph inputs without an initializer.
        constants: initializers by name, defaults of inputs included, sparse ones not.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.graph.output]
        self._reads = [reads(node) for node in self.nodes]
        self._producers: dict[str, int] = {}
        self._consumers: dict[str, list[int]] = collections.defaultdict(list)
        self._names: dict[str, list[int]] = collections.defaultdict(list)
        for position, node in enumerate(self.nodes):
            self._names[node.name].append(position)
            for name in writes(node):
                if name in self._producers:
                    first = self.label(self._producers[name])
                    raise ModelFileError(f'nodes {first} and {self.label(position)} both write {name!r}')
                self._producers[name] = position
            for name in self._reads[position]:
                self._consumers[name].append(position)
        self._names.pop('', None)

    def producer(self, tensor: str) -> int | None:
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[int]:
        """Return the positions of the nodes that read a tensor, ascending."""
        return list(self._consumers.get(tensor, ()))

    def reads(self, position: int) -> list[str]:
        return self._reads[position]

    def writes(self, position: int) -> list[str]:
        return writes(self.nodes[position])

    def label(self, position: int) -> str:
        return node_label(self.nodes, position)

    @property
    def tensors(self) -> list[str]:
        values = [value.name for value in self.graph.input]
        return list(dict.fromkeys([*values, *self.constants, *self._producers]))

    def has_tensor(self, name: str) -> bool:
        return name in self._producers or name in self.constants or name in self.inputs

    def check_tensor(self, name: str) -> str:
        """Raise UsageError, with similar names, for an unknown tensor."""
        if self.has_tensor(name):
            return name
        hint = did_you_mean(name, self.tensors) or f'; `show --nodes` of {tool("graph")} lists all'
        raise UsageError(f'there is no tensor {name!r} in the graph{hint}')

    def find_node(self, name: str) -> int:
        """Return the position of a node by name or '#12'; UsageError for none or several."""
        positions = self._names.get(name, [])
        if len(positions) > 1:
            places = ', '.join(f'#{position}' for position in positions[:8])
            raise UsageError(
                f'{len(positions)} nodes have the name {name!r}; select one by its position: {places}'
            )
        number = name.removeprefix('#').split(' ')[0]
        if name.startswith('#') and number.isdecimal() and int(number) < len(self.nodes):
            positions = positions or [int(number)]
        if not positions:
            hint = did_you_mean(name, self._names) or f'; it has {len(self.nodes)} nodes, #0 first'
            raise UsageError(f'there is no node {name!r} in the graph{hint}')
        return positions[0]

    def ancestors(self, outputs: Iterable[str], stops: Iterable[str] = ()) -> list[int]:
        """Return the positions, ascending, of the nodes that make `outputs`; the search ends at `stops`."""
        stops, positions = set(stops), set()
        waiting = [name for name in outputs if name not in stops]
        while waiting:
            position = self.producer(waiting.pop())
            if position is not None and position not in positions:
                positions.add(position)
                waiting.extend(name for name in self.reads(position) if name not in stops)
        return sorted(positions)

    def descendants(self, inputs: Iterable[str]) -> list[int]:
        """Return the positions, ascending, of all nodes that depend on the tensors `inputs`."""
        positions, waiting = set(), list(inputs)
        while waiting:
            new_readers = set(self.consumers(waiting.pop())) - positions
            positions |= new_readers
            waiting.extend(name for position in new_readers for name in self.writes(position))
        return sorted(positions)

    def leaves(self, positions: Iterable[int], stops: Iterable[str] = ()) -> list[str]:
        """Return the graph inputs that some nodes read, without `stops`, in graph order."""
        names = {name for position in positions for name in self.reads(position)} - set(stops)
        return [name for name in self.inputs if name in names]

    def constant_nodes(self) -> set[int]:
        """Return the positions of nodes that depend on no graph input, not even one with a default."""
        random = [position for position, node in enumerate(self.nodes) if node.op_type in RANDOM]
        varying = [value.name for value in self.graph.input]
        varying += [name for position in random for name in self.writes(position)]
        return set(range(len(self.nodes))) - {*random, *self.descendants(varying)}


def opsets_of(model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    """Return domain -> opset version; ONNX's own domain is ''."""
    return {'' if entry.domain == 'ai.onnx' else entry.domain: entry.version for entry in model.opset_import}


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    domain = '' if node.domain == 'ai.onnx' else node.domain
    return _schema(node.op_type, domain, opsets.get(domain, 1))


@functools.cache
def _schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return name -> Python value of a node's attributes; texts are bytes."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def defaults_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> dict[str, Any]:
    """Return name -> default of the attributes of a node's operator."""
    schema = schema_of(node, opsets)
    entries = [entry.default_value for entry in schema.attributes.values()] if schema else []
    return {entry.name: helper.get_attribute_value(entry) for entry in entries if entry.name}


def random_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes with random results, also of bodies and functions, as 'name (operator)'."""
    return [
        f'{node.name or f"#{position}"} ({node.op_type})'
        for graph in all_graphs(model)
        for position, node in enumerate(graph.node)
        if node.op_type in RANDOM or (node.op_type == 'Dropout' and _may_train(node, graph))
    ]


def _may_train(dropout: onnx.NodeProto, graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if len(dropout.input) < 3 or not dropout.input[2]:
        return False
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in getattr(graph, 'initializer', ())}
    constants.update((node.output[0], constant_value(node)) for node in graph.node if node.output)
    training = constants.get(dropout.input[2])
    inputs = {value if isinstance(value, str) else value.name for value in graph.input}
    return training is None or dropout.input[2] in inputs or bool(np.any(training))


ATTRIBUTE_DTYPES = {
    **dict.fromkeys((AttributeProto.FLOAT, AttributeProto.FLOATS), np.float32),
    **dict.fromkeys((AttributeProto.INT, AttributeProto.INTS), np.int64),
}


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node, None for another node."""
    if node.op_type != 'Constant' or node.domain not in ('', 'ai.onnx') or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.ref_attr_name:
        return None
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    return np.asarray(value, ATTRIBUTE_DTYPES.get(attribute.type, object))


def array_bytes(array: np.ndarray) -> bytes:
    """Return bytes that are equal only for equal arrays of one dtype and shape."""
    if array.dtype != object:
        return array.tobytes()
    return repr([text if isinstance(text, bytes) else text.encode() for text in array.ravel()]).encode()


def constants_to_initializers(graph: onnx.GraphProto, data_type: int | None = None) -> None:
    """Turn the Constant nodes of a graph into initializers, in place; constants of strings stay nodes."""
    initializers = {}
    for node in graph.node:
        value = constant_value(node)
        if value is None or value.dtype == object:
            continue
        (attribute,) = node.attribute
        is_tensor = attribute.type == AttributeProto.TENSOR
        tensor = copy.copy(attribute.t if is_tensor else numpy_helper.from_array(value))
        tensor.name = node.output[0]
        if data_type in (None, tensor.data_type):
            initializers[tensor.name] = tensor
    graph.initializer.extend(initializers.values())
    refill(graph, node=[node for node in graph.node if initializers.keys().isdisjoint(node.output)])


def count_nodes(model: onnx.ModelProto) -> int:
    """Count the nodes of the main graph other than Constant."""
    return sum(node.op_type != 'Constant' for node in model.graph.node)
