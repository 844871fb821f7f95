"""A sparse graph in the other coordinate order."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.runtime.sparse.ir import (
    ORDERS,
    TRIPLES,
    ScatterDense,
    SparseConvolution,
    Transpose,
    renumber,
)

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.sparse.ir import Node, SparseGraph

REVERSED = (0, 1, 4, 3, 2)
"""Axes of (1, C, d0, d1, d2) in the other order; its own inverse."""


def reorder(graph: SparseGraph, order: str) -> SparseGraph:
    """The same network on coordinates in another axis order; the dense output stays.

    Kernels are permuted, never mirrored. A Transpose behind each ScatterDense takes up the change. Names and
    ids are counted anew.

    Source: ALGORITHM.md of the tests' golden files, section 4.
    """
    if order not in ORDERS:
        raise UsageError(f'order={order!r} is unknown; expected one of {", ".join(ORDERS)}')
    if order == graph.order:
        return graph
    nodes: list[Node] = []
    names: dict[str, str] = {}
    scatters: dict[str, ScatterDense] = {}
    for node in graph.nodes:
        source = scatters.get(node.inputs[0])
        node = dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        if source is None:
            if isinstance(node, ScatterDense):
                scatters[node.output] = node
                shape = tuple(node.output_shape[axis] for axis in REVERSED)
                node = dataclasses.replace(node, spatial_shape=node.spatial_shape[::-1], output_shape=shape)
            elif isinstance(node, SparseConvolution):
                triples = {name: getattr(node, name)[::-1] for name in TRIPLES}
                weight = np.ascontiguousarray(node.weight.transpose(0, 3, 2, 1, 4))
                node = dataclasses.replace(node, weight=weight, **triples)
            nodes.append(node)
        elif isinstance(node, Transpose):
            dims = tuple(REVERSED[axis] for axis in node.dims)
            if dims == tuple(range(5)):
                names[node.output] = node.inputs[0]
            else:
                nodes.append(dataclasses.replace(node, dims=dims))
        else:
            restored = _restored_once(nodes, source)
            nodes.append(dataclasses.replace(node, inputs=(restored, *node.inputs[1:])))
    if graph.output in scatters:
        names[graph.output] = _restored_once(nodes, scatters[graph.output])
    changes = dict(nodes=tuple(nodes), order=order, spatial_shape=graph.spatial_shape[::-1])
    return renumber(dataclasses.replace(graph, output=names.get(graph.output, graph.output), **changes))


def _restored_once(nodes: list[Node], scatter: ScatterDense) -> str:
    output = f'{scatter.output} restored'
    restored = Transpose('', scatter.module, (scatter.output,), output, REVERSED)
    if restored not in nodes:
        nodes.append(restored)
    return output
