"""Whether two models are the same graph, and so compute the same for every input. Needs no torch.

Every tensor gets a digest of how it is computed: of the operator, its attributes bit for bit, and the digests
of what it reads, down to the inputs (by name) and the constants (by type, shape and bytes, however they are
stored). Two models are the same graph when their nodes have the same digests, each as often, and their
inputs, defaults, outputs and opsets agree. Inner names and the order of nodes do not count.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.graph.diff.align import align
from mmdeploy_ext.graph.diff.program import Constants, Program
from mmdeploy_ext.graph.diff.structure import Change, attributes, changes, exact_text
from mmdeploy_ext.graph.io.constants import constant_value, dense_values
from mmdeploy_ext.graph.io.index import all_nodes, bodies, node_label
from mmdeploy_ext.graph.io.modules import module_path

KEPT_OUT = ('metadata',)
"""Kinds of changes that are none of the graph."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """A graph, so that equal ones have equal signatures.

    Attributes:
        nodes: digest of a node, with all that it is computed from -> how often it is there.
        interface: inputs with their types and defaults, outputs with their types and digests, opsets.
        tensors: tensor of the main graph -> digest.
        made: digest of each node of the main graph, in file order; '' for a node that is a constant.
    """

    nodes: collections.Counter[str]
    interface: tuple[str, ...]
    tensors: dict[str, str]
    made: tuple[str, ...]

    def equals(self, other: Signature) -> bool:
        """Return whether both are of the same graph."""
        return self.nodes == other.nodes and self.interface == other.interface

    @property
    def size(self) -> int:
        """How many nodes of the main graph are no constants."""
        return sum(self.nodes.values())


def compute_signature(model: onnx.ModelProto) -> Signature:
    """Return the signature of a model."""
    graph = model.graph
    defaults = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {value.name: _digest('input', value.name) for value in graph.input}
    scope = _Scope(model, {(f.domain, f.name, f.overload): f for f in model.functions})
    made = scope.enter(graph, tensors)
    interface = [f'input {_typed(value)} {_default(defaults.get(value.name))}' for value in graph.input]
    interface += [f'output {_typed(value)} {tensors.get(value.name)}' for value in graph.output]
    interface += _opsets(model)
    return Signature(collections.Counter(filter(None, made)), tuple(interface), tensors, tuple(made))


def _opsets(model: onnx.ModelProto) -> list[str]:
    """Return the opsets that nodes are of; one of a domain that no node is of decides nothing."""
    used = {'ai.onnx', *(node.domain or 'ai.onnx' for node in all_nodes(model))}
    pairs = ((entry.domain or 'ai.onnx', entry.version) for entry in model.opset_import)
    return sorted(f'opset {domain} {version}' for domain, version in pairs if domain in used)


def count_nodes(model: onnx.ModelProto) -> int:
    """Return how many nodes of the main graph are no constants."""
    return sum(node.op_type != 'Constant' for node in model.graph.node)


@dataclasses.dataclass(frozen=True)
class _Scope:
    """Digests of the nodes of one graph, body or function."""

    opsets: onnx.ModelProto | onnx.FunctionProto
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    depth: int = 0

    def enter(self, graph: onnx.GraphProto | onnx.FunctionProto, known: dict[str, str]) -> list[str]:
        """Digest the nodes of a graph, and what they write into `known`; returns a digest per node."""
        inputs = set(_names(graph.input))
        for tensor in getattr(graph, 'initializer', ()):
            if tensor.name not in inputs:
                known[tensor.name] = _constant(numpy_helper.to_array(tensor))
        for sparse in getattr(graph, 'sparse_initializer', ()):
            known[sparse.values.name] = _constant(dense_values(sparse))
        return [self._node(node, known) for node in graph.node]

    def _node(self, node: onnx.NodeProto, known: dict[str, str]) -> str:
        value = constant_value(node)
        if value is not None:
            known[node.output[0]] = _constant(value)
            return ''
        found = _digest(
            node.domain or 'ai.onnx',
            node.op_type,
            *(f'{name}={exact_text(entry)}' for name, entry in sorted(attributes(node, self.opsets).items())),
            *(f'{entry.name}=@{entry.ref_attr_name}' for entry in node.attribute if entry.ref_attr_name),
            *self._bodies(node, known),
            self._function(node),
            'reads',
            *(known.get(name, f'? {name}') if name else '' for name in _stripped(node.input)),
            'writes',
            *('1' if name else '0' for name in _stripped(node.output)),
        )
        known.update((name, _digest(found, str(place))) for place, name in enumerate(node.output) if name)
        return found

    def _bodies(self, node: onnx.NodeProto, known: Mapping[str, str]) -> list[str]:
        """Return a digest per body: the branches of If, the bodies of Loop and Scan."""
        inner = _Scope(self.opsets, self.functions, self.depth + 1)
        return [
            f'{attribute.name}={inner.whole(body, dict(known))}'
            for attribute in sorted(node.attribute, key=lambda entry: entry.name)
            for body in bodies(onnx.NodeProto(attribute=[attribute]))
        ]

    def _function(self, node: onnx.NodeProto) -> str:
        """Return the digest of the local function that a node calls, '' where it calls none."""
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            return ''
        inner = _Scope(function, self.functions, self.depth + 1)
        defaults = sorted(entry.SerializeToString(deterministic=True) for entry in function.attribute_proto)
        imports = sorted(f'{entry.domain} {entry.version}' for entry in function.opset_import)
        return _digest(inner.whole(function, {}), *function.attribute, *map(bytes.hex, defaults), *imports)

    def whole(self, graph: onnx.GraphProto | onnx.FunctionProto, known: dict[str, str]) -> str:
        """Return the digest of a body or function: what it takes by place, does, and gives."""
        for place, name in enumerate(_names(graph.input)):
            known[name] = _digest('argument', str(self.depth), str(place))
        nodes = sorted(filter(None, self.enter(graph, known)))
        given = [known.get(name, f'? {name}') for name in _names(graph.output)]
        return _digest(*nodes, 'gives', str(len(graph.input)), *given)


def _stripped(names: Sequence[str]) -> list[str]:
    """Return names without the empty ones at the end: what is left out there is not there."""
    found = list(names)
    while found and not found[-1]:
        found.pop()
    return found


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, 'little') + encoded)
    return digest.hexdigest()


def _constant(array: np.ndarray) -> str:
    """Return the digest of a constant: its type, shape and bytes."""
    raw = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    values = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return _digest('constant', str(array.dtype), str(array.shape), values)


def _default(tensor: onnx.TensorProto | None) -> str:
    return 'needed' if tensor is None else _constant(numpy_helper.to_array(tensor))


def _typed(value: onnx.ValueInfoProto) -> str:
    return f'{value.name} {value.type.SerializeToString(deterministic=True).hex()}'


def _names(values: Iterable[str | onnx.ValueInfoProto]) -> list[str]:
    return [value if isinstance(value, str) else value.name for value in values]


@dataclasses.dataclass(frozen=True)
class GraphDifference:
    """One place where a file is another graph than its reference.

    Attributes:
        kind: see `diff.structure.Change`, as the next one and `detail`.
        where: node, tensor, or name of an input, output or opset.
        module: PyTorch module that the node was exported from, '' where that is not known.
        more: other nodes that differ in the same: they read the same constant.
    """

    kind: str
    where: str
    module: str
    detail: str
    more: int = 0

    @property
    def text(self) -> str:
        """All in one line."""
        module = f' (module {self.module})' if self.module else ''
        more = f' and {self.more} more' if self.more else ''
        return f'{self.where}{module}{more}: {self.detail}'


def differences(
    model: onnx.ModelProto, reference: onnx.ModelProto, known: tuple[Signature, Signature] | None = None
) -> list[GraphDifference]:
    """Return where two models are different graphs, in topological order; empty when they are the same.

    `known` are their signatures, where they are known already.
    """
    mine, other = known or (compute_signature(model), compute_signature(reference))
    if mine.equals(other):
        return []
    constants = Constants()
    left, right = Program(model, constants), Program(reference, constants)
    found = changes(left, right, align(left, right))
    kept = [_difference(change, left, right) for change in found if change.kind not in KEPT_OUT]
    return _grouped(kept) or _unexplained(model, mine, other)


def _grouped(found: Sequence[GraphDifference]) -> list[GraphDifference]:
    """Return one difference of those in one constant, which several nodes may read."""
    groups: dict[tuple[str, ...], list[GraphDifference]] = {}
    for entry in found:
        where = '' if entry.kind == 'initializer' else entry.where
        groups.setdefault((entry.kind, entry.detail, where), []).append(entry)
    return [dataclasses.replace(group[0], more=len(group) - 1) for group in groups.values()]


def _difference(change: Change, left: Program, right: Program) -> GraphDifference:
    program, position = (left, change.left) if change.left is not None else (right, change.right)
    module = '' if position is None else module_path(program.index.nodes[position])
    return GraphDifference(change.kind, change.where, module, change.detail)


def _unexplained(model: onnx.ModelProto, mine: Signature, other: Signature) -> list[GraphDifference]:
    """Return what the alignment does not tell: nodes without a counterpart whose inputs all have one."""
    nodes, theirs, unlike = model.graph.node, {*other.tensors.values()}, 'is not the same as in the reference'
    found = [
        GraphDifference('node', node_label(nodes, place), module_path(node), f'{node.op_type} {unlike}')
        for place, (node, digest) in enumerate(zip(nodes, mine.made, strict=True))
        if digest
        and digest not in other.nodes
        and all(mine.tensors.get(name) in theirs for name in node.input if name)
    ]
    changed = [entry for entry in mine.interface if entry not in other.interface]
    found += [GraphDifference('interface', entry.split()[1], '', unlike) for entry in changed]
    last = 'nodes are there another number of times, or in another order of outputs'
    return found or [GraphDifference('node', 'graph', '', last)]
