"""In which type an engine computes and stores each node: attributes of the dialect, with their ranges."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.sparse.ir import Add, Relu, SparseConvolution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.sparse.ranges import NodeRange, Ranges

    Override = str | tuple[str, str]

PRECISIONS = ('fp16', 'int8')


def apply_precision(
    graph: SparseGraph,
    precision: str,
    overrides: Mapping[str, Override] | None = None,
    ranges: Ranges | None = None,
) -> SparseGraph:
    """Return the graph with a precision and an output precision on every convolution and addition.

    The precision is what the kernel computes in, the output precision what it stores. All nodes that have
    ranges keep them, as in the reference's files, also those that compute in fp16.

    Args:
        graph: folded.
        precision: 'fp16' or 'int8', of all nodes that no override names.
        overrides: pattern -> precision, or (precision, output precision). Patterns (fnmatch) are compared
            with node names ('conv3') and module paths ('conv_input.*'); the last that fits counts.
        ranges: None where nothing is int8.

    Raises:
        UsageError: an unknown precision, a pattern that fits no node, an int8 node without ranges.

    Source: golden ALGORITHM.md, section 5.
    """
    chosen = _chosen(graph, _pair('precision', precision), overrides or {})
    known = ranges.nodes if ranges is not None else {}
    nodes = (
        _with_precision(node, chosen[node.name], known.get(node.name)) if node.name in chosen else node
        for node in graph.nodes
    )
    changed = dataclasses.replace(graph, nodes=tuple(nodes))
    _check_ranges(changed)
    return changed


def fp16_ends(graph: SparseGraph) -> dict[str, tuple[str, str]]:
    """Return the overrides of the reference's INT8 file of BEVFusion (--int8-fp16-input-output).

    The first convolution computes in fp16 and stores int8, the last one computes in int8 and stores fp16.
    """
    convolutions = graph.convolutions()
    first, last = convolutions[0].name, convolutions[-1].name
    both = {first: ('fp16', 'int8'), last: ('int8', 'fp16')}
    return both if len(both) == 2 else {first: ('fp16', 'fp16')}


def _chosen(
    graph: SparseGraph, default: tuple[str, str], overrides: Mapping[str, Override]
) -> dict[str, tuple[str, str]]:
    nodes = [node for node in graph.nodes if isinstance(node, SparseConvolution | Add)]
    chosen = {node.name: default for node in nodes}
    for pattern, value in overrides.items():
        pair = _pair(f'precision of {pattern!r}', value)
        fitting = [node.name for node in nodes if fnmatch.filter((node.name, node.module), pattern)]
        if not fitting:
            shown = ', '.join(f'{node.name} ({node.module})' for node in nodes[:3])
            raise UsageError(
                f'precision override {pattern!r} fits no convolution or addition; expected a node name or a '
                f'module path, * standing for anything: {shown}, ...'
            )
        chosen.update(dict.fromkeys(fitting, pair))
    return chosen


def _pair(what: str, value: Override) -> tuple[str, str]:
    pair = (value, value) if isinstance(value, str) else tuple(value)
    if len(pair) != 2 or any(item not in PRECISIONS for item in pair):
        raise UsageError(
            f'{what} is {value!r}; expected {" or ".join(PRECISIONS)}, or (precision, output precision)'
        )
    return pair


def _with_precision(node: Node, pair: tuple[str, str], known: NodeRange | None) -> Node:
    changes = dict(precision=pair[0], output_precision=pair[1])
    if known is not None and known.input_amax is not None:
        # as the file keeps them, so that reading it back gives the same graph
        changes['input_range'] = float(np.float32(known.input_amax))
    if isinstance(node, SparseConvolution):
        # the reference's quantised files say '' where its plain ones say nothing; engines read the same
        changes['rulebook'] = node.rulebook or ''
        if known is not None and known.weight_amax is not None:
            changes['weight_ranges'] = np.array(known.weight_amax, np.float32)
    return dataclasses.replace(node, **changes)


def _check_ranges(graph: SparseGraph) -> None:
    readers = _readers(graph)
    for node in graph.nodes:
        if not isinstance(node, SparseConvolution | Add):
            continue
        problem = _input_problem(node) or _weight_problem(node)
        if node.precision == 'int8' and problem:
            raise UsageError(
                f'{node.name} ({node.module}): computes in int8, but {problem}; calibrate, or keep '
                f'{node.name} in fp16'
            )
        for reader in readers.get(node.output, ()) if node.output_precision == 'int8' else ():
            if problem := _input_problem(reader):
                raise UsageError(
                    f'{reader.name} ({reader.module}): reads what {node.name} stores in int8, but {problem}; '
                    f'calibrate'
                )


def _readers(graph: SparseGraph) -> dict[str, list[SparseConvolution | Add]]:
    """Return what reads each tensor, through ReLUs."""
    readers: dict[str, list[SparseConvolution | Add]] = {}
    for node in reversed(graph.nodes):
        found = readers.get(node.output, []) if isinstance(node, Relu) else [node]
        for name in node.inputs:
            kept = [item for item in found if isinstance(item, SparseConvolution | Add)]
            readers.setdefault(name, []).extend(kept)
    return readers


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
    bad = ranges[~(np.isfinite(ranges) & (ranges > 0))]
    return f'its weight has the range {bad[0]:g}' if bad.size else ''
