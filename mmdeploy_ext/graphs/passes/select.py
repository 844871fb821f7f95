"""Nodes and tensors by name or pattern ('*', '?', '[...]', see `fnmatch`); every name fits itself."""

import fnmatch
from collections.abc import Iterable, Sequence

import onnx

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.io.files import module_of
from mmdeploy_ext.graphs.io.index import Index, did_you_mean

WILDCARDS = '*?['
"""Characters that make a name a pattern."""


def select_nodes(index: Index, patterns: Iterable[str]) -> list[int]:
    """Return the positions, ascending, of nodes named by '/backbone/*', a name, or '#12'."""
    positions: set[int] = set()
    names = [node.name for node in index.nodes]
    for pattern in patterns:
        if pattern in names or not any(sign in pattern for sign in WILDCARDS):
            positions.add(index.find_node(pattern))
            continue
        fitting = {position for position, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)}
        if not fitting:
            raise UsageError(f'no node matches {pattern!r}{did_you_mean(pattern.strip("*"), names)}')
        positions |= fitting
    return sorted(positions)


def match_tensors(index: Index, pattern: str) -> list[str]:
    if index.producer(pattern) is not None:
        return [pattern]
    if not any(sign in pattern for sign in WILDCARDS):
        index.check_tensor(pattern)
        raise UsageError(f'{pattern!r} is an input or a constant of the graph, not the output of a node')
    outputs = [name for name in index.tensors if index.producer(name) is not None]
    fitting = [name for name in outputs if fnmatch.fnmatchcase(name, pattern)]
    if not fitting:
        raise UsageError(f'no tensor matches {pattern!r}{did_you_mean(pattern.strip("*"), outputs)}')
    return fitting


def matching_nodes(nodes: Sequence[onnx.NodeProto], patterns: Sequence[str]) -> list[int]:
    """Return the positions, ascending, of nodes with a matching name, operator, module or output."""
    matches = match_patterns(nodes, patterns)
    for pattern, positions in matches.items():
        if not positions:
            names = {name for node in nodes for name in (node.name, node.op_type) if name}
            raise UsageError(
                f"--keep-fp32 {pattern!r}: matches no node's name, operator, module or "
                f'output{did_you_mean(pattern, names)}'
            )
    return sorted({position for positions in matches.values() for position in positions})


def match_patterns(nodes: Sequence[onnx.NodeProto], patterns: Sequence[str]) -> dict[str, list[int]]:
    """Return pattern -> positions of its nodes; see `matching_nodes`."""
    names = [(node.name, node.op_type, module_of(node)[0], *node.output) for node in nodes]
    return {
        pattern: [
            position
            for position, node_names in enumerate(names)
            if any(name and (name == pattern or fnmatch.fnmatchcase(name, pattern)) for name in node_names)
        ]
        for pattern in patterns
    }
