"""One copy of a model that is about to get one fault: where its tensors are, and the random choices."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import all_graphs, bodies, reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
BODY_SHARE = 0.3
"""How often a fault goes into a body or a function, where the model has any."""


class NoSite(Exception):
    """This model has no place for this fault, or the one that was drawn cannot have it."""


class Draft:
    """A copy of a model, and what was known of the original.

    Attributes:
        model: to be changed in place.
        random: all choices come from it.
        kinds: types of the tensors of the main graph, of the original.
        beside: name -> content of files that the model needs beside it.
    """

    def __init__(
        self, model: onnx.ModelProto, random: np.random.Generator, kinds: dict[str, onnx.TypeProto]
    ) -> None:
        """Copy the model."""
        self.model, self.random, self.kinds = onnx.ModelProto(), random, kinds
        self.beside: dict[str, bytes] = {}
        self.model.CopyFrom(model)
        self.main = self.model.graph
        self.inner = [graph for graph in all_graphs(self.model) if graph is not self.main and graph.node]

    def pick(self, values: Iterable) -> object:
        """Return one of some values.

        Raises:
            NoSite: there is none.
        """
        values = list(values)
        if not values:
            raise NoSite
        return values[self.random.integers(len(values))]

    def graph(self) -> onnx.GraphProto | onnx.FunctionProto:
        """Return the main graph or, at times, a body or a function."""
        return self.pick(self.inner) if self.inner and self.random.random() < BODY_SHARE else self.main

    def label(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
        """Return what to call a node."""
        inside = '' if graph is self.main else f'{graph.name}: '
        return f'{inside}{node.name or next(iter(node.output), "")} ({node.op_type})'

    def kind(self, graph: onnx.GraphProto, tensor: str, by_shape: bool = True) -> str:
        """Return dtype and sizes (or rank) of a tensor, or what makes it where they are not known, or ''."""
        known = self.kinds.get(tensor) if graph is self.main else None
        if known is None or not known.HasField('tensor_type') or types.shape(known) is None:
            made = [node.op_type for node in graph.node if tensor in node.output]
            return f'made by {made[0]}' if made else ''
        sizes = types.shape(known)
        return f'{known.tensor_type.elem_type} {sizes if by_shape else len(sizes)}'

    def elem_type(self, graph: onnx.GraphProto, tensor: str) -> int:
        """Return the ONNX dtype of a tensor of the main graph; 0 when it is not known."""
        known = self.kinds.get(tensor) if graph is self.main else None
        return known.tensor_type.elem_type if known is not None else 0

    def float_outputs(self) -> list[tuple[onnx.NodeProto, str]]:
        """Return the outputs of nodes of the main graph that are floats of a known rank, and are read."""
        used = {name for node in self.main.node for name in reads(node)}
        used.update(value.name for value in self.main.output)
        return [
            (node, name)
            for node in self.main.node
            for name in node.output
            if name in used and self.elem_type(self.main, name) in FLOATS and node.op_type != 'Constant'
        ]

    def same_value(self, graph: onnx.GraphProto, one: str, two: str) -> bool:
        """Return whether two tensors of a graph are computed by the same operators from the same values."""
        makers = {name: node for node in graph.node for name in node.output}
        constants = {tensor.name: tensor for tensor in getattr(graph, 'initializer', ())}
        inputs = {value if isinstance(value, str) else value.name for value in graph.input}
        known: dict[str, str] = {}

        def key(name: str) -> str:
            if name not in known:
                if name in constants and name not in inputs:
                    known[name] = _contents(constants[name])
                elif name not in makers:
                    known[name] = name
                else:
                    node = makers[name]
                    said = sorted(_said(entry) for entry in node.attribute)
                    read = [key(value) for value in node.input]
                    text = repr((node.domain, node.op_type, said, read, list(node.output).index(name)))
                    if node.op_type == 'Constant' and node.attribute[0].HasField('t'):
                        text = _contents(node.attribute[0].t)
                    known[name] = hashlib.sha256(text.encode()).hexdigest() if len(text) > 99 else text
            return known[name]

        for node in graph.node:  # in order, so that the recursion is never deep
            for name in node.output:
                key(name)
        return key(one) == key(two)

    def fresh(self, stem: str = 'fault') -> str:
        """Return a name that the model does not have."""
        return f'mutation_{stem}_{self.random.integers(1 << 40)}'

    def constant(self, value: np.ndarray | float, elem_type: int = 0) -> str:
        """Add an initializer to the main graph and return its name."""
        array = np.asarray(value)
        if elem_type:
            array = array.astype(helper.tensor_dtype_to_np_dtype(elem_type))
        name = self.fresh('constant')
        self.main.initializer.append(numpy_helper.from_array(array, name))
        return name

    def after(self, name: str, nodes: Sequence[onnx.NodeProto]) -> None:
        """Let every reader of a tensor read what new nodes make of it instead.

        Args:
            name: of the main graph; what makes it is renamed, so that graph outputs keep their names.
            nodes: read `SOURCE`, the last one writes `RESULT`.
        """
        source = self.fresh('source')
        place = 0
        for index, node in enumerate(self.main.node):
            if name in node.output:
                place = index + 1
                node.output[list(node.output).index(name)] = source
        if not place:
            raise NoSite
        for node in nodes:
            rename(node, SOURCE, source)
            rename(node, RESULT, name)
        for index, node in enumerate(nodes):
            self.main.node.insert(place + index, node)

    def node(
        self, op_type: str, inputs: Sequence[str], output: str = '', **attributes: object
    ) -> onnx.NodeProto:
        """Return a node with an output of a fresh name unless given."""
        name = self.fresh(op_type.lower())
        return helper.make_node(op_type, list(inputs), [output or name], name=name, **attributes)


def _contents(tensor: TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    return hashlib.sha256(f'{array.dtype} {array.shape}'.encode() + array.tobytes()).hexdigest()


def _said(entry: onnx.AttributeProto) -> str:
    return f'{entry.name} {hashlib.sha256(entry.SerializeToString(deterministic=True)).hexdigest()}'


SOURCE, RESULT = '<source>', '<result>'


def rename(node: onnx.NodeProto, old: str, new: str) -> None:
    """Rename a tensor in a node and in its bodies."""
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name == old:
                names[index] = new
    for body in bodies(node):
        for inner in body.node:
            rename(inner, old, new)
        for value in body.output:
            value.name = new if value.name == old else value.name
