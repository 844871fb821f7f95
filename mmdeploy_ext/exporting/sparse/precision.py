"""Types in which an engine computes and stores each node, with ranges for int8."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.runtime.sparse.ir import Add, Node, Relu, SparseConvolution, SparseGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.exporting.sparse.ranges import NodeRange, Ranges

    Override = str | tuple[str, str]
    """Precision of a node, or its precision and output precision."""

PRECISIONS = ('fp16', 'int8')


def apply_precision(
    graph: SparseGraph,
    precision: str,
    overrides: Mapping[str, Override] | None = None,
    ranges: Ranges | None = None,
) -> SparseGraph:
    """Set precision, output precision and ranges of every convolution and addition of a folded graph.

    `overrides`: pattern (fnmatch) of node names or module paths -> `Override`; the last match wins. With
    'int8' use `fp16_ends`, since the last convolution would store int8. Source: ALGORITHM.md of the tests'
    golden files, section 5.

    Raises:
        UsageError: an unknown precision, a pattern without nodes, or int8 without a usable range.
    """
    precisions = _precisions(graph, _pair('precision', precision), overrides or {})
    nodes = []
    for node in graph.nodes:
        if node.name in precisions:
            node_range = ranges.nodes.get(node.name) if ranges is not None else None
            node = _with_precision(node, precisions[node.name], node_range)
        nodes.append(node)
    _check_ranges(nodes)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def fp16_ends(graph: SparseGraph) -> dict[str, tuple[str, str]]:
    """Overrides for an INT8 network with fp16 ends, as in the reference's file of BEVFusion."""
    convolutions = graph.convolutions()
    first, last = convolutions[0].name, convolutions[-1].name
    both = {first: ('fp16', 'int8'), last: ('int8', 'fp16')}
    return both if len(both) == 2 else {first: ('fp16', 'fp16')}


def _precisions(
    graph: SparseGraph, default: tuple[str, str], overrides: Mapping[str, Override]
) -> dict[str, tuple[str, str]]:
    nodes = [node for node in graph.nodes if isinstance(node, SparseConvolution | Add)]
    precisions = {node.name: default for node in nodes}
    for pattern, value in overrides.items():
        pair = _pair(f'precision of {pattern!r}', value)
        names = [node.name for node in nodes if fnmatch.filter((node.name, node.module), pattern)]
        if not names:
            examples = ', '.join(f'{node.name} ({node.module})' for node in nodes[:3])
            raise UsageError(
                f'precision override {pattern!r} matches no convolution or addition; expected a node name '
                f'or a module path with * as a wildcard: {examples}, ...'
            )
        precisions.update(dict.fromkeys(names, pair))
    return precisions


def _pair(title: str, value: Override) -> tuple[str, str]:
    pair = (value, value) if isinstance(value, str) else tuple(value)
    if len(pair) != 2 or any(item not in PRECISIONS for item in pair):
        raise UsageError(
            f'{title} is {value!r}; expected {" or ".join(PRECISIONS)}, or (precision, output precision)'
        )
    return pair


def _with_precision(node: Node, pair: tuple[str, str], node_range: NodeRange | None) -> Node:
    changes = dict(precision=pair[0], output_precision=pair[1])
    if node_range is not None and node_range.input_amax is not None:
        # float32 as the file stores them, so that reading it back gives the same graph
        changes['input_range'] = float(np.float32(node_range.input_amax))
    if isinstance(node, SparseConvolution):
        # the reference's quantised files say '' where its plain ones say nothing; engines read the same
        changes['rulebook'] = node.rulebook or ''
        if node_range is not None and node_range.weight_amax is not None:
            changes['weight_ranges'] = np.array(node_range.weight_amax, np.float32)
    return dataclasses.replace(node, **changes)


def _check_ranges(nodes: Sequence[Node]) -> None:
    consumers: dict[str, list[SparseConvolution | Add]] = {}  # by tensor, through ReLUs
    for node in reversed(nodes):
        readers = consumers.get(node.output, []) if isinstance(node, Relu) else [node]
        for name in node.inputs:
            consumers.setdefault(name, []).extend(
                reader for reader in readers if isinstance(reader, SparseConvolution | Add)
            )
    for node in nodes:
        if not isinstance(node, SparseConvolution | Add):
            continue
        problem = _input_problem(node) or _weight_problem(node)
        if node.precision == 'int8' and problem:
            raise UsageError(
                f'{node.name} ({node.module}): computes in int8, but {problem}; calibrate, or keep '
                f'{node.name} in fp16'
            )
        for consumer in consumers.get(node.output, ()) if node.output_precision == 'int8' else ():
            if problem := _input_problem(consumer):
                raise UsageError(
                    f'{consumer.name} ({consumer.module}): reads the int8 output of {node.name}, but '
                    f'{problem}; calibrate'
                )


def _input_problem(node: SparseConvolution | Add) -> str:
    if node.input_range is None:
        return 'its input has no range'
    return '' if 0 < node.input_range < math.inf else f'its input has the range {node.input_range:g}'


def _weight_problem(node: SparseConvolution | Add) -> str:
    if isinstance(node, Add):
        return ''
    ranges = node.weight_ranges
    if ranges is None:
        return 'its weight has no ranges'
    if ranges.shape != (node.out_channels,):
        return f'its weight has {ranges.size} ranges, expected {node.out_channels}'
    unusable = ranges[~(np.isfinite(ranges) & (ranges > 0))]
    return f'its weight has the range {unusable[0]:g}' if unusable.size else ''
