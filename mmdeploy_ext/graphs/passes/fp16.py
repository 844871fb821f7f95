"""Mixed precision: write float16 into a graph; islands stay float32 where its range or grid is too coarse.

* From inputs marked `single` in the spec (points, intrinsics, poses, times) and from float64 to the first
  product with a weight: coordinates, inverse sigmoids, arguments of sine encodings.
* From the last product with a weight to outputs marked `single`, with everything that reads them (boxes, the
  scores that a top-k sorts).

Without both, the toy StreamPETR keeps 0 of 418 results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import (
    bodies,
    captured,
    constants_to_initializers,
    opsets_of,
    refill,
    schema_of,
)
from mmdeploy_ext.graphs.passes.select import match_patterns, matching_nodes
from mmdeploy_ext.spec.tensors import GraphSpec

HALF, SINGLE, DOUBLE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
"""Data types of tensors: float16, float32 and float64."""
LOWER = dict(fp16=HALF, bf16=TensorProto.BFLOAT16)
"""Precision below float32 -> data type of its tensors."""
BF16_OPSET = 22
"""First opset in which Conv takes bfloat16."""
LARGEST_HALF = 65504.0
"""Largest number in float16."""
PRODUCTS = {'MatMul': 1, 'Gemm': 1, 'Conv': 1, 'ConvTranspose': 1}
"""Operator -> place of the operand that is a weight if it is constant."""
TYPED_OPS = {'Cast', 'CastLike', 'Constant', 'ConstantOfShape', 'EyeLike', 'RandomNormal', 'RandomUniform'}
"""Operators that state their output type; left unchanged."""
SINGLE_OPERANDS = {'Resize': (1, 2)}
"""Operator -> places of operands that are float32 only."""


def to_fp16(model: onnx.ModelProto, spec: GraphSpec, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the model in mixed precision; a second run with the same arguments changes nothing.

    Args:
        model: has the spec's inputs and outputs.
        spec: `single` marks where float32 islands start and end; inputs and outputs of dtype float16 become
            float16.
        keep: patterns ('*', '?', '[...]') of names, operators, modules or outputs of nodes that stay float32.
    """
    matching_nodes(model.graph.node, keep)
    half_ends = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.dtype == 'float16'}
    graph = _Graph(model, half_ends)
    inputs = {tensor.name for tensor in spec.inputs if tensor.single}
    outputs = {tensor.name for tensor in spec.outputs if tensor.single}
    islands = graph.islands(inputs, outputs) | graph.unsupported()
    islands |= {position for nodes in match_patterns(graph.nodes, keep).values() for position in nodes}
    _Writer(graph, islands | graph.constants_of(islands), half_ends).write()
    return graph.model


def to_lower(
    model: onnx.ModelProto, precision: str, keep: Sequence[str] = (), half_ends: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return the model with all in 'fp16' or 'bf16' but the nodes that `keep` fits, and those of `required`.

    `half_ends`: inputs and outputs that change, too. bfloat16 takes a model of `of_opset`.
    """
    graph = _Graph(model, set(half_ends), LOWER[precision])
    islands = {position for nodes in match_patterns(graph.nodes, keep).values() for position in nodes}
    islands |= graph.required().keys()
    _Writer(graph, islands | graph.constants_of(islands), set(half_ends)).write()
    return graph.model


def of_opset(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the model in an opset whose Conv knows the precision: 22 for 'bf16'."""
    if precision != 'bf16' or opsets_of(model)[''] >= BF16_OPSET:
        return model
    return onnx.version_converter.convert_version(model, BF16_OPSET)


def required_fp32(model: onnx.ModelProto, precision: str) -> dict[str, str]:
    """Return the first output of each node that stays float32 in any plan -> why."""
    graph = _Graph(model, set(), LOWER[precision])
    return {graph.nodes[position].output[0]: reason for position, reason in graph.required().items()}


def compared_outputs(model: onnx.ModelProto) -> list[str]:
    """Return the first output of each node behind an Equal of floats, see `_Graph.compared`."""
    graph = _Graph(model, set())
    return [graph.nodes[position].output[0] for position in sorted(graph.compared())]


def exceeds_half(array: np.ndarray) -> bool:
    return bool(np.abs(array[np.isfinite(array)]).max(initial=0.0) > LARGEST_HALF)


class _Graph:
    def __init__(self, model: onnx.ModelProto, half_ends: set[str], lower: int = HALF) -> None:
        self.model, self.lower = copy.deepcopy(model), lower
        graph = self.model.graph
        self.captured = {name for node in graph.node for name in captured(node)}
        if self.captured & half_ends:
            raise ExportError(
                f'float16: input {sorted(self.captured & half_ends)[0]!r} is read inside a sub-graph, which '
                f'stays float32; keep the inputs float32'
            )
        constants_to_initializers(graph, SINGLE)
        if not any(tensor.data_type == lower for tensor in graph.initializer):
            # the spec was applied to a float32 graph: its float16 inputs and outputs are not written yet
            for value in (*graph.input, *graph.output):
                if value.name in half_ends:
                    value.type.tensor_type.elem_type = SINGLE
        tensor_types = {name: value_type.tensor_type for name, value_type in types.infer(self.model).items()}
        self.elements = {name: tensor_type.elem_type for name, tensor_type in tensor_types.items()}
        self.ranks = {
            name: len(tensor_type.shape.dim)
            for name, tensor_type in tensor_types.items()
            if tensor_type.HasField('shape')
        }
        self.nodes = list(graph.node)
        self.constants = {tensor.name for tensor in graph.initializer}
        self.constants -= {value.name for value in graph.input}
        for node in self.nodes:
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)

    def floats(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.elements.get(name) in (self.lower, SINGLE)]

    def unsupported(self) -> set[int]:
        return self.not_defined() | self.around_sub_graphs()

    def required(self) -> dict[int, str]:
        """Positions of nodes that stay float32 whatever their values are -> why."""
        reasons = dict.fromkeys(self.around_sub_graphs(), 'read or written by a sub-graph')
        reasons |= dict.fromkeys(self.not_defined(), f'ONNX has no {types.dtype(self.lower)} for it')
        reasons |= dict.fromkeys(self.compared(), 'an Equal of floats compares it')
        for tensor in self.model.graph.initializer if self.lower == HALF else ():
            if tensor.data_type == SINGLE and exceeds_half(array := numpy_helper.to_array(tensor)):
                text = f'overflow: its constant {tensor.name} has {np.abs(array[np.isfinite(array)]).max():g}'
                readers = (place for place, node in enumerate(self.nodes) if tensor.name in node.input)
                reasons |= dict.fromkeys(readers, text)
        return {place: reasons[place] for place in sorted(reasons) if self.floats(self.ends(place))}

    def ends(self, position: int) -> list[str]:
        return [*self.nodes[position].input, *self.nodes[position].output]

    def compared(self) -> set[int]:
        """Nodes behind an Equal of floats, back to the last product.

        SOLO keeps the cells that equal the maximum of their neighbourhood, and finds none if an engine rounds
        one side only (toy SOLOv2 in ONNX Runtime: cosine 0.03).
        """
        positions, needed = set(), set()
        for position, node in reversed(list(enumerate(self.nodes))):
            is_compared = node.op_type == 'Equal' or not needed.isdisjoint(node.output)
            if is_compared and node.op_type not in PRODUCTS and self.floats(node.input):
                positions.add(position)
                needed.update(self.floats(node.input))
        return positions

    def is_weighted(self, node: onnx.NodeProto) -> bool:
        place = PRODUCTS.get(node.op_type)
        if place is None or node.input[place] not in self.constants:
            return False
        if self.elements.get(node.input[place]) == DOUBLE:  # geometry
            return False
        return self.ranks.get(node.input[place], 2) == 2 or 'Conv' in node.op_type

    def is_typed(self, node: onnx.NodeProto) -> bool:
        floats = self.floats([*node.input, *node.output])
        is_lower = any(self.elements[name] == self.lower for name in floats)
        return node.op_type in TYPED_OPS or not floats or is_lower

    def islands(self, inputs: set[str], outputs: set[str]) -> set[int]:
        single, needed = set(inputs), set(outputs)
        ending, islands = set(), set()
        for position, node in reversed(list(enumerate(self.nodes))):
            if needed.intersection(node.output):
                ending.add(position)
                if not self.is_weighted(node):
                    needed.update(self.floats(node.input))
        doubles = {name for name, element in self.elements.items() if element == DOUBLE}
        single |= doubles
        for position, node in enumerate(self.nodes):
            operands = [*self.floats(node.input), *doubles.intersection(node.input)]
            from_single = single.intersection(operands) and not self.is_weighted(node)
            if from_single or position in ending:
                islands.add(position)
                single.update(self.floats(node.output))
        return islands

    def not_defined(self) -> set[int]:
        opsets, lower = opsets_of(self.model), f'tensor({types.dtype(self.lower)})'
        positions = set()
        for position, node in enumerate(self.nodes):
            schema = schema_of(node, opsets)
            if schema is None:
                positions.add(position)
                continue
            single = SINGLE_OPERANDS.get(node.op_type, ())
            ends = [
                (place, name, schema.inputs) for place, name in enumerate(node.input) if place not in single
            ]
            ends += [(place, name, schema.outputs) for place, name in enumerate(node.output)]
            for place, name, formals in ends:
                taken = formals[min(place, len(formals) - 1)].types if formals else ()
                if self.elements.get(name) == SINGLE and lower not in taken:
                    positions.add(position)
        return positions

    def around_sub_graphs(self) -> set[int]:
        return {
            position
            for position, node in enumerate(self.nodes)
            if self.captured.intersection(node.output) or next(bodies(node), None) is not None
        }

    def constants_of(self, islands: set[int]) -> set[int]:
        positions = set()
        read = {name for position in islands for name in self.nodes[position].input}
        for position, node in reversed(list(enumerate(self.nodes))):
            if self.constants.issuperset(node.output) and read.intersection(node.output):
                positions.add(position)
                read.update(node.input)
        return positions


class _Writer:
    def __init__(self, graph: _Graph, islands: set[int], half_ends: set[str]) -> None:
        self.graph, self.islands, self.half_ends = graph, islands, half_ends
        self.elements = dict(graph.elements)
        proto = graph.model.graph
        fed = {value.name for value in proto.input}  # others may be fed in their place
        self.initializers = {tensor.name: tensor for tensor in proto.initializer if tensor.name not in fed}
        self.nodes: list[onnx.NodeProto] = []
        self.converted: set[str] = set()
        self.new_initializers: list[TensorProto] = []

    def write(self) -> None:
        graph, proto = self.graph, self.graph.model.graph
        for value in proto.input:
            if value.name in self.half_ends:
                value.type.tensor_type.elem_type = HALF
                self.elements[value.name] = HALF
        inner_names = self.inner_names_of_outputs()
        for position, node in enumerate(graph.nodes):
            element = SINGLE if position in self.islands else graph.lower
            is_typed = graph.is_typed(node)
            single = SINGLE_OPERANDS.get(node.op_type, ())
            new_node = copy.deepcopy(node)
            for place, name in enumerate(node.input):
                if is_typed:
                    operand_element = graph.elements.get(name, 0)
                else:
                    operand_element = SINGLE if place in single else element
                new_node.input[place] = self.operand(inner_names.get(name, name), operand_element)
            new_node.output[:] = [inner_names.get(name, name) for name in node.output]
            if not is_typed:
                floats = graph.floats(node.output)
                self.elements.update((inner_names.get(name, name), element) for name in floats)
            self.nodes.append(new_node)
        for value in proto.output:
            if value.name in self.half_ends:
                value.type.tensor_type.elem_type = HALF
            if value.name in inner_names:
                inner, element = inner_names[value.name], value.type.tensor_type.elem_type
                cast = helper.make_node('Cast', [inner], [value.name], name=f'{inner}/Cast', to=element)
                self.nodes.append(cast)
        used = {name for node in self.nodes for name in node.input}
        used |= graph.captured | {value.name for value in (*proto.input, *proto.output)}
        initializers = [*proto.initializer, *self.new_initializers]
        initializers = [tensor for tensor in initializers if tensor.name in used]
        refill(proto, node=self.nodes, initializer=initializers, value_info=())

    def inner_names_of_outputs(self) -> dict[str, str]:
        graph = self.graph
        outputs = {value.name for value in graph.model.graph.output}
        inner_names = {}
        for position, node in enumerate(graph.nodes):
            for name in outputs.intersection(graph.floats(node.output)):
                outside = HALF if name in self.half_ends else graph.elements[name]
                inside = SINGLE if position in self.islands else graph.lower
                if node.op_type in TYPED_OPS or graph.elements[name] == graph.lower:
                    inside = graph.elements[name]
                if inside != outside:
                    inner_names[name] = f'{name}/inner'
        return inner_names

    def operand(self, name: str, element: int) -> str:
        if self.elements.get(name) not in (self.graph.lower, SINGLE) or self.elements[name] == element:
            return name
        new_name = f'{name}/{"single" if element == SINGLE else "half"}'
        if new_name not in self.converted and name in self.initializers:
            array = numpy_helper.to_array(self.initializers[name])
            if element == HALF and exceeds_half(array):
                raise ExportError(
                    f'float16: constant {name!r} has values up to {np.abs(array).max():g}; the largest '
                    'float16 is 65504: keep the nodes that read it in float32 (--keep-fp32), or export '
                    'with --precision fp32'
                )
            array = array.astype(helper.tensor_dtype_to_np_dtype(element))
            self.new_initializers.append(numpy_helper.from_array(array, new_name))
        elif new_name not in self.converted:
            cast = helper.make_node('Cast', [name], [new_name], name=f'{new_name}/Cast', to=element)
            self.nodes.append(cast)
        self.converted.add(new_name)
        self.elements[new_name] = element
        return new_name
