"""Whether two models are the same graph, and so compute the same for every input. Needs no torch."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.graphs.diff.program import Constants, Program
from mmdeploy_ext.graphs.diff.structure import align, attributes, changes, constant_change, exact_text
from mmdeploy_ext.graphs.io.files import module_path
from mmdeploy_ext.graphs.io.index import (
    Index,
    all_nodes,
    array_bytes,
    bodies,
    captured,
    constant_value,
    node_label,
    operator_name,
    opsets_of,
    schema_of,
)
from mmdeploy_ext.spec.results import GraphDifference

IGNORED_CHANGES = ('metadata',)
"""Kinds of changes that do not make another graph."""
ANY_NUMBER = onnx.defs.OpSchema.FormalParameterOption.Variadic
"""Kind of a last output that an operator may have any number of times."""
TOLERANCE = 1e-6
"""Allowed difference of float constants, relative to the largest value; float16 may differ by one step."""
UNLIKE = 'is not the same as in the reference'
"""Detail of a node that the reference lacks, where no single difference was found."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """The structure of a graph, without the values of its float constants.

    Attributes:
        nodes: digest of a node and its ancestors -> number of such nodes.
        interface: texts of inputs (name, type, default), outputs (name, type, digest) and used opsets.
        tensors: tensor of the main graph -> digest, inputs and constants included.
        node_digests: per node of the main graph; '' for a constant.
    """

    nodes: collections.Counter[str]
    interface: tuple[str, ...]
    tensors: dict[str, str]
    node_digests: tuple[str, ...]

    def equals(self, other: Signature) -> bool:
        return self.nodes == other.nodes and self.interface == other.interface

    @property
    def size(self) -> int:
        return sum(self.nodes.values())


def compute_signature(model: onnx.ModelProto) -> Signature:
    graph = model.graph
    tensors = {value.name: _digest('input', value.name) for value in graph.input}
    functions = {
        (function.domain or 'ai.onnx', function.name, function.overload): function
        for function in model.functions
    }
    node_digests = _Scope(model, functions).digest_nodes(graph, tensors)
    defaults, interface = _defaults(graph), []
    for value in graph.input:
        default = 'needed'
        if value.name in defaults:
            default = _constant_digest(defaults[value.name])
        interface.append(f'input {_typed(value)} {default}')
    interface += [f'output {_typed(value)} {tensors.get(value.name)}' for value in graph.output]
    # opsets of unused domains do not count
    domains = {'ai.onnx', *(node.domain or 'ai.onnx' for node in all_nodes(model))}
    opsets = ((entry.domain or 'ai.onnx', entry.version) for entry in model.opset_import)
    interface += sorted(f'opset {domain} {version}' for domain, version in opsets if domain in domains)
    nodes = collections.Counter(filter(None, node_digests))
    return Signature(nodes, tuple(interface), tensors, tuple(node_digests))


@dataclasses.dataclass(frozen=True)
class _Scope:
    opsets: onnx.ModelProto | onnx.FunctionProto  # whose opset imports apply
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    depth: int = 0  # of nested bodies

    def digest_nodes(self, graph: onnx.GraphProto | onnx.FunctionProto, tensors: dict[str, str]) -> list[str]:
        inputs = set(_names(graph.input))
        for tensor in getattr(graph, 'initializer', ()):
            if tensor.name not in inputs:
                tensors[tensor.name] = _constant_digest(numpy_helper.to_array(tensor))
        return [self._digest_node(node, tensors) for node in graph.node]

    def _digest_node(self, node: onnx.NodeProto, tensors: dict[str, str]) -> str:
        value = constant_value(node)
        if value is not None:
            tensors[node.output[0]] = _constant_digest(value)
            return ''
        node_attributes = attributes(node, self.opsets)
        inner = dataclasses.replace(self, depth=self.depth + 1)
        digest = _digest(
            node.domain or 'ai.onnx',
            node.op_type,
            *(f'{name}={exact_text(value)}' for name, value in sorted(node_attributes.items())),
            *(f'{entry.name}=@{entry.ref_attr_name}' for entry in node.attribute if entry.ref_attr_name),
            *(
                f'{attribute.name}={inner.digest_body(body, dict(tensors))}'
                for attribute in sorted(node.attribute, key=lambda entry: entry.name)
                for body in bodies(onnx.NodeProto(attribute=[attribute]))
            ),
            self._digest_function(node),
            'reads',
            *(tensors.get(name, f'? {name}') if name else '' for name in _without_trailing(node.input)),
            'writes',
            *('1' if name else '0' for name in self._counted_outputs(node)),
        )
        outputs = enumerate(node.output)
        tensors.update((name, _digest(digest, str(index))) for index, name in outputs if name)
        return digest

    def _counted_outputs(self, node: onnx.NodeProto) -> Sequence[str]:
        schema = schema_of(node, opsets_of(self.opsets)) if '' in node.output[-1:] else None
        if schema is None or schema.outputs[-1].option == ANY_NUMBER:
            return node.output
        return _without_trailing(node.output)

    def _digest_function(self, node: onnx.NodeProto) -> str:
        function = self.functions.get((node.domain or 'ai.onnx', node.op_type, node.overload))
        if function is None:
            return ''
        inner = dataclasses.replace(self, opsets=function, depth=self.depth + 1)
        defaults = sorted(entry.SerializeToString(deterministic=True) for entry in function.attribute_proto)
        imports = sorted(f'{entry.domain} {entry.version}' for entry in function.opset_import)
        return _digest(
            inner.digest_body(function, tensors={}), *function.attribute, *map(bytes.hex, defaults), *imports
        )

    def digest_body(self, graph: onnx.GraphProto | onnx.FunctionProto, tensors: dict[str, str]) -> str:
        inputs = _names(graph.input)
        for index, name in enumerate(inputs):
            tensors[name] = _digest('argument', str(self.depth), str(index))
        nodes = sorted(filter(None, self.digest_nodes(graph, tensors)))
        defaults = [
            f'default {inputs.index(name)} {_constant_digest(array)}'
            for name, array in _defaults(graph).items()
        ]
        outputs = [tensors.get(name, f'? {name}') for name in _names(graph.output)]
        return _digest(*nodes, *sorted(defaults), 'gives', str(len(inputs)), *outputs)


def _defaults(graph: onnx.GraphProto | onnx.FunctionProto) -> dict[str, np.ndarray]:
    names = set(_names(graph.input))
    initializers = [tensor for tensor in getattr(graph, 'initializer', ()) if tensor.name in names]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}


def _without_trailing(names: Sequence[str]) -> list[str]:
    names = list(names)
    while names and not names[-1]:
        names.pop()
    return names


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, 'little') + encoded)
    return digest.hexdigest()


def _constant_digest(array: np.ndarray) -> str:
    is_integer = array.dtype.name.startswith(('int', 'uint'))  # int4, which numpy lacks, is no np.integer
    if not is_integer and array.dtype not in (np.bool_, object):
        return _digest('constant', str(array.dtype), str(array.shape))
    values = hashlib.blake2b(array_bytes(array), digest_size=16).hexdigest()
    return _digest('constant', str(array.dtype), str(array.shape), values)


def _typed(value: onnx.ValueInfoProto) -> str:
    return f'{value.name} {value.type.SerializeToString(deterministic=True).hex()}'


def _names(values: Iterable[str | onnx.ValueInfoProto]) -> list[str]:
    return [value if isinstance(value, str) else value.name for value in values]


def differences(model: onnx.ModelProto, reference: onnx.ModelProto) -> list[GraphDifference]:
    """Return the differences of a model from a reference, nodes first; [] if the graph is the same."""
    signature, expected = compute_signature(model), compute_signature(reference)
    if signature.equals(expected):
        return _constants_that_differ(model, reference)
    constants = Constants()
    program, expected_program = Program(model, constants), Program(reference, constants)
    groups: dict[tuple[str, ...], list[GraphDifference]] = {}
    for change in changes(program, expected_program, align(program, expected_program)):
        is_rounding = change.size is not None and change.size <= TOLERANCE
        if change.kind in IGNORED_CHANGES or is_rounding:
            continue
        graph, position = (
            (program, change.left) if change.left is not None else (expected_program, change.right)
        )
        module = '' if position is None else module_path(graph.index.nodes[position])
        difference = GraphDifference(change.kind, change.where, module, change.detail)
        node = '' if change.kind == 'initializer' else change.where  # several nodes may read one constant
        groups.setdefault((change.kind, change.detail, node), []).append(difference)
    explained = [dataclasses.replace(group[0], more=len(group) - 1) for group in groups.values()]
    return explained or _unexplained(model, signature, expected)


def is_same_structure(model: onnx.ModelProto, reference: onnx.ModelProto) -> bool:
    """Whether two models are one graph, but for the values of their float constants."""
    return compute_signature(model).equals(compute_signature(reference))


def _constants_that_differ(model: onnx.ModelProto, reference: onnx.ModelProto) -> list[GraphDifference]:
    """Walk both graphs of equal structure back from their outputs, and compare the constants of each pair."""
    indices = Index(model), Index(reference)
    pending = [(*names, -1) for names in zip(*(index.outputs for index in indices), strict=True)]
    details: dict[tuple[str, str], str] = {}
    readers: dict[tuple[str, str], set[int]] = {}
    while pending:
        name, reference_name, reader = pending.pop()
        is_new = (name, reference_name) not in readers
        readers.setdefault((name, reference_name), set()).add(reader)
        if not is_new:
            continue
        value, expected = _constant(indices[0], name), _constant(indices[1], reference_name)
        if value is not None and expected is not None:
            if not _is_close(value, expected):
                details[name, reference_name] = f'{name}: {constant_change(value, expected)[0]}'
            continue
        positions = indices[0].producer(name), indices[1].producer(reference_name)
        if None in positions:
            continue
        node, reference_node = (
            index.nodes[position] for index, position in zip(indices, positions, strict=True)
        )
        operands = zip(
            (*node.input, *captured(node)), (*reference_node.input, *captured(reference_node)), strict=False
        )
        pending += [(*names, positions[0]) for names in operands if all(names)]
        pairs = zip(_inner_constants(node, model), _inner_constants(reference_node, reference), strict=True)
        changed = [constant_change(*pair)[0] for pair in pairs if not _is_close(*pair)]
        if changed:
            readers[name, reference_name] = {positions[0]}
            details[name, reference_name] = f'a constant inside: {changed[0]}'
    found, nodes = [], model.graph.node
    for key in sorted(details, key=lambda key: min(readers[key])):
        first, more = min(readers[key]), len(readers[key]) - 1
        where = node_label(nodes, first) if first >= 0 else 'graph'
        module = module_path(nodes[first]) if first >= 0 else ''
        found.append(GraphDifference('initializer', where, module, details[key], more))
    return found


def _constant(index: Index, name: str) -> np.ndarray | None:
    """Return an initializer, a Constant node's value, or the one that an Identity copies."""
    if name in index.constants:
        return numpy_helper.to_array(index.constants[name])
    if (position := index.producer(name)) is None:
        return None
    node = index.nodes[position]
    return _constant(index, node.input[0]) if operator_name(node) == 'Identity' else constant_value(node)


def _inner_constants(node: onnx.NodeProto, model: onnx.ModelProto) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    called = [
        function
        for function in model.functions
        if (function.domain, function.name, function.overload) == (node.domain, node.op_type, node.overload)
    ]
    for graph in (*bodies(node), *called):
        arrays += [numpy_helper.to_array(tensor) for tensor in getattr(graph, 'initializer', ())]
        for inner in graph.node:
            value = constant_value(inner)
            arrays += _inner_constants(inner, model) if value is None else [value]
    return arrays


def _is_close(value: np.ndarray, expected: np.ndarray) -> bool:
    if np.array_equal(value, expected):
        return True
    distance = ArrayDistance(value, expected)
    allowed: Any = TOLERANCE * distance.scale
    if value.dtype == np.float16:
        steps = np.spacing(np.abs(expected)).ravel().astype(np.float64)
        allowed = np.fmax(steps, allowed)
    return bool((distance.differences <= allowed).all())


def _unexplained(model: onnx.ModelProto, signature: Signature, expected: Signature) -> list[GraphDifference]:
    nodes, digests = model.graph.node, set(expected.tensors.values())
    unlike = [
        GraphDifference('node', node_label(nodes, position), module_path(node), f'{node.op_type} {UNLIKE}')
        for position, (node, digest) in enumerate(zip(nodes, signature.node_digests, strict=True))
        if digest
        and digest not in expected.nodes
        and all(signature.tensors.get(name) in digests for name in node.input if name)
    ]
    detail = 'inputs, outputs, opsets or nodes differ in order or number'
    return unlike or [GraphDifference('node', 'graph', '', detail)]
