"""Mixed precision: write float16 into a graph; islands stay float32 where its range or grid is too coarse.

Two rules find the islands:

* what is computed from inputs that the spec marks `single` (points, intrinsics, poses, times) is float32 up
  to the first product with a weight: coordinates, inverse sigmoids and the arguments of sine encodings;
* what gives outputs that it marks `single` is float32 from the last product with a weight on, and so is
  what follows from it inside the graph (boxes, the scores that a top-k sorts).

A product with a weight is a MatMul, Gemm or Conv whose second operand is a constant matrix or kernel.
ONNX Runtime's `convert_float_to_float16` knows no such rules: three times the error on the toy ATSS (1.5e-4
instead of 5.3e-5 of the largest value, with 55 casts instead of 48).
A user may name further nodes that stay float32. Operators that float16 is not defined for stay as they are,
and so do nodes with sub-graphs and what gives the values that their sub-graphs read from outside.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.graph.io.constants import constants_to_initializers
from mmdeploy_ext.graph.io.index import bodies, captured, refill
from mmdeploy_ext.graph.io.operators import opsets_of, schema_of
from mmdeploy_ext.graph.io.types import infer
from mmdeploy_ext.graph.passes.select import match_patterns, matching_nodes

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
PRODUCTS = {'MatMul': 1, 'Gemm': 1, 'Conv': 1, 'ConvTranspose': 1}
"""Operators whose operand of this index is a weight when it is constant."""
SINGLE_OPS = frozenset({'Pow', 'ReduceMean', 'Sqrt', 'Reciprocal', 'Exp', 'Log', 'Sin', 'Cos', 'Range'})
"""Squares overflow float16 and an epsilon of 1e-5 is one of its smallest numbers; these stay float32."""
TYPED_OPS = {'Cast', 'CastLike', 'Constant', 'ConstantOfShape', 'EyeLike', 'RandomNormal', 'RandomUniform'}
"""Operators that say themselves what they give; they are left as they are."""
SINGLE_OPERANDS = {'Resize': (1, 2)}
"""Operands that the operator takes in float32 alone."""


def to_fp16(model: onnx.ModelProto, spec: GraphSpec, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the model in mixed precision; a model that is already in it comes back the same.

    Args:
        model: its inputs and outputs are the spec's.
        spec: `single` inputs start a float32 island and `single` outputs end one; inputs and outputs whose
            dtype is float16 become that, all others keep theirs.
        keep: patterns ('*', '?', '[...]') of node names, operators or tensors that nodes write; these nodes
            stay float32.

    Raises:
        ExportError: a constant exceeds float16, or a sub-graph reads an input that becomes float16.
        UsageError: a pattern in `keep` fits no node.
    """
    matching_nodes(model.graph.node, keep)
    half_io = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.dtype == 'float16'}
    graph = _prepare(model, half_io)
    inputs = {tensor.name for tensor in spec.inputs if tensor.single}
    outputs = {tensor.name for tensor in spec.outputs if tensor.single}
    islands = _islands(graph, inputs, outputs) | _not_defined_for_half(graph) | _around_sub_graphs(graph)
    islands |= {place for places in match_patterns(graph.nodes, keep).values() for place in places}
    _rewrite(graph, islands | _constants_of(graph, islands), half_io)
    return graph.model


def _not_defined_for_half(graph: _Graph) -> set[int]:
    """Return the nodes whose operator takes float32 and not float16, or that ONNX does not know."""
    opsets = opsets_of(graph.model)

    def defined(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> bool:
        single = SINGLE_OPERANDS.get(node.op_type, ())
        ends = [(at, name, schema.inputs) for at, name in enumerate(node.input) if at not in single]
        ends += [(at, name, schema.outputs) for at, name in enumerate(node.output)]
        return all(
            'tensor(float16)' in formals[min(at, len(formals) - 1)].types
            for at, name, formals in ends
            if graph.types.get(name) == SINGLE
        )

    schemas = [schema_of(node, opsets) for node in graph.nodes]
    nodes = enumerate(zip(graph.nodes, schemas, strict=True))
    return {place for place, (node, schema) in nodes if schema is None or not defined(node, schema)}


@dataclasses.dataclass
class _Graph:
    """A copy of the model, its constants as initializers, with what the rules ask about it.

    `types` and, where inference knows them, `ranks` are by the names of values; `constants` depend on no
    input, and sub-graphs read what is `captured` by its name.
    """

    model: onnx.ModelProto
    types: dict[str, int]
    ranks: dict[str, int]
    constants: set[str]
    captured: set[str]

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def floats(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.types.get(name) in (HALF, SINGLE)]

    def is_weighted(self, node: onnx.NodeProto) -> bool:
        operand = PRODUCTS.get(node.op_type)
        if operand is None or node.input[operand] not in self.constants:
            return False
        return self.ranks.get(node.input[operand], 2) == 2 or 'Conv' in node.op_type


def _prepare(model: onnx.ModelProto, half_io: set[str]) -> _Graph:
    copied = copy.deepcopy(model)
    graph = copied.graph
    inside = {name for node in graph.node for name in captured(node)}
    if inside & half_io:
        raise ExportError(
            f'float16: input {sorted(inside & half_io)[0]!r} is read inside a sub-graph, which stays '
            f'float32; keep the inputs float32'
        )
    constants_to_initializers(graph, SINGLE)
    if not any(value.data_type == HALF for value in graph.initializer):
        # the spec was applied to a float32 graph: its float16 inputs and outputs are not written yet
        for value in (*graph.input, *graph.output):
            if value.name in half_io:
                value.type.tensor_type.elem_type = SINGLE
    kinds = {name: kind.tensor_type for name, kind in infer(copied).items()}
    types = {name: kind.elem_type for name, kind in kinds.items()}
    ranks = {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField('shape')}
    fed = {value.name for value in graph.input}
    constants = {value.name for value in graph.initializer} - fed
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
    return _Graph(copied, types, ranks, constants, inside)


def _around_sub_graphs(graph: _Graph) -> set[int]:
    """Return the nodes with sub-graphs, and those that give what sub-graphs read from outside by its name."""
    return {
        place
        for place, node in enumerate(graph.nodes)
        if graph.captured.intersection(node.output) or next(bodies(node), None) is not None
    }


def _islands(graph: _Graph, inputs: set[str], outputs: set[str]) -> set[int]:
    """Return the indices of the nodes that compute in float32."""
    nodes, tainted, wanted = list(enumerate(graph.nodes)), set(inputs), set(outputs)
    ending, islands = set(), set()
    for index, node in reversed(nodes):
        if wanted.intersection(node.output):
            ending.add(index)
            wanted.update([] if graph.is_weighted(node) else graph.floats(node.input))
    for index, node in nodes:
        starts = tainted.intersection(graph.floats(node.input)) and not graph.is_weighted(node)
        if starts or index in ending:
            islands.add(index)
            tainted.update(graph.floats(node.output))
        elif node.op_type in SINGLE_OPS:
            islands.add(index)
    return islands


def _constants_of(graph: _Graph, islands: set[int]) -> set[int]:
    """Return the nodes that compute constants which an island reads, so that none is rounded on its way."""
    nodes, found = graph.nodes, set()
    read = {name for index in islands for name in nodes[index].input}
    for index, node in reversed([*enumerate(nodes)]):
        if graph.constants.issuperset(node.output) and read.intersection(node.output):
            found.add(index)
            read.update(node.input)
    return found


class _Writer:
    """Hands each node its operands in the type it wants; one cast per value and type."""

    def __init__(self, graph: _Graph) -> None:
        self.types = dict(graph.types)
        fed = {value.name for value in graph.model.graph.input}  # others may be fed in their place
        stored = graph.model.graph.initializer
        self.initializers = {value.name: value for value in stored if value.name not in fed}
        self.nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()
        self.extra: list[TensorProto] = []

    def operand(self, name: str, wanted: int) -> str:
        """Return the name of `name` in the type `wanted`."""
        if self.types.get(name) not in (HALF, SINGLE) or self.types[name] == wanted:
            return name
        made = f'{name}/{"half" if wanted == HALF else "single"}'
        if made not in self.made and name in self.initializers:
            self.extra.append(_converted(self.initializers[name], made, wanted))
        elif made not in self.made:
            self.nodes.append(helper.make_node('Cast', [name], [made], name=f'{made}/Cast', to=wanted))
        self.made.add(made)
        self.types[made] = wanted
        return made


def _converted(tensor: TensorProto, name: str, wanted: int) -> TensorProto:
    array = numpy_helper.to_array(tensor)
    if wanted == HALF and array.size and np.abs(array[np.isfinite(array)]).max(initial=0.0) > 65504.0:
        raise ExportError(
            f'float16: constant {tensor.name!r} has values up to {np.abs(array).max():g}; float16 ends at '
            f'65504: keep the nodes that read it in float32 (--keep-fp32), or export with --precision fp32'
        )
    return numpy_helper.from_array(array.astype(np.float16 if wanted == HALF else np.float32), name)


def _rewrite(graph: _Graph, islands: set[int], half_io: set[str]) -> None:
    proto = graph.model.graph
    writer = _Writer(graph)
    for value in proto.input:
        if value.name in half_io:
            value.type.tensor_type.elem_type = HALF
            writer.types[value.name] = HALF
    natives = _output_names(graph, islands, half_io)
    for index, node in enumerate(graph.nodes):
        floats = graph.floats([*node.input, *node.output])
        wanted = SINGLE if index in islands else HALF
        fixed = node.op_type in TYPED_OPS or not floats or any(graph.types[name] == HALF for name in floats)
        single = SINGLE_OPERANDS.get(node.op_type, ())
        written = copy.deepcopy(node)
        for place, name in enumerate(node.input):
            kind = graph.types.get(name, 0) if fixed else SINGLE if place in single else wanted
            written.input[place] = writer.operand(natives.get(name, name), kind)
        written.output[:] = [natives.get(name, name) for name in node.output]
        if not fixed:
            writer.types.update((natives.get(name, name), wanted) for name in graph.floats(node.output))
        writer.nodes.append(written)
    _finish(graph, writer, natives, half_io)


def _output_names(graph: _Graph, islands: set[int], half_io: set[str]) -> dict[str, str]:
    """Return the new inner name of each graph output whose type inside differs from the one outside."""
    outputs = {value.name for value in graph.model.graph.output}
    renamed = {}
    for index, node in enumerate(graph.nodes):
        for name in outputs.intersection(graph.floats(node.output)):
            asked = HALF if name in half_io else graph.types[name]
            fixed = node.op_type in TYPED_OPS or graph.types[name] == HALF
            inside = graph.types[name] if fixed else SINGLE if index in islands else HALF
            if inside != asked:
                renamed[name] = f'{name}/inner'
    return renamed


def _finish(graph: _Graph, writer: _Writer, natives: dict[str, str], half_io: set[str]) -> None:
    proto = graph.model.graph
    for value in proto.output:
        if value.name in half_io:
            value.type.tensor_type.elem_type = HALF
        inner = natives.get(value.name)
        if inner is not None:
            to = value.type.tensor_type.elem_type
            writer.nodes.append(helper.make_node('Cast', [inner], [value.name], name=f'{inner}/Cast', to=to))
    used = {name for node in writer.nodes for name in node.input}
    used |= graph.captured | {value.name for value in (*proto.input, *proto.output)}
    kept = [value for value in (*proto.initializer, *writer.extra) if value.name in used]
    refill(proto, node=writer.nodes, initializer=kept, value_info=())
