"""What of its rulebook a sparse graph shares: levels, tables and dense scatters. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.sparse import ir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import SparseGraph, Triple


@dataclasses.dataclass(frozen=True)
class Table(Plain):
    """One neighbour table; convolutions with the same sites and geometry share it.

    Attributes:
        name: the rulebook's name in the graph, where it has one that is free; unique.
        level_in, level_out: indices of the levels that it reads and writes.
        subm: whether the output sites are the input sites.
        kernel_size, stride, padding, dilation: per axis; a submanifold one has stride 1 and padding 0 here.
    """

    name: str
    level_in: int
    level_out: int
    subm: bool
    kernel_size: Triple
    stride: Triple
    padding: Triple
    dilation: Triple


@dataclasses.dataclass(frozen=True)
class Scatter(Plain):
    """One dense tensor, of a ScatterDense node; `axes` are the spatial ones in order, the last outermost."""

    name: str
    level: int
    axes: Triple


@dataclasses.dataclass(frozen=True)
class Plan(Plain):
    """What `rulebook.build` has to find for a graph.

    Attributes:
        spatial_shape: grid of level 0, the voxels.
        tables: in the order in which they can be built; a strided one adds the next level.
        scatters: one per ScatterDense node.
        level_of: sparse tensor id -> level.
        table_of: convolution's name -> table's name.
    """

    spatial_shape: Triple
    tables: tuple[Table, ...]
    scatters: tuple[Scatter, ...]
    level_of: dict[str, int]
    table_of: dict[str, str]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Rebuild from `to_json`; also after a round through JSON text."""
        kinds = dict(tables=Table, scatters=Scatter)
        parts = {name: [*map(kind.from_json, content[name])] for name, kind in kinds.items()}
        return super().from_json({**content, **parts})


def plan_of(graph: SparseGraph) -> Plan:
    """Find what the convolutions of a graph really share.

    Two convolutions share a table when they read the same sites with the same geometry; rulebook names in the
    graph only give tables their names, so missing or reused ones do not matter.

    Raises:
        ExportError: a node that has no rulebook here (inverse, transposed or grouped convolution, even
            submanifold kernel), sites that do not fit together, or shapes that the geometry does not give.
    """
    return _Planner(graph).plan()


class _Planner:
    def __init__(self, graph: SparseGraph) -> None:
        self.graph = graph
        self.shapes: list[Triple] = [tuple(graph.spatial_shape)]
        self.tables: dict[tuple, Table] = {}
        self.scatters: list[Scatter] = []
        self.level_of, self.table_of = {'0': 0}, {}

    def plan(self) -> Plan:
        rules = {
            ir.SparseConvolution: self._convolution,
            ir.Add: self._same,
            ir.Relu: self._same,
            ir.BatchNorm: self._same,
            ir.ScatterDense: self._scatter,
        }
        for node in self.graph.nodes:
            if type(node) in rules:
                rules[type(node)](node)
            elif any(tensor in self.level_of for tensor in node.inputs):
                raise ExportError(
                    f'{_where(node)}: {node.op_type} of a sparse tensor; expected it after ScatterDense'
                )
        tables = tuple(self.tables.values())
        return Plan(self.shapes[0], tables, tuple(self.scatters), self.level_of, self.table_of)

    def _level(self, node: ir.Node) -> int:
        for tensor in node.inputs:
            if tensor not in self.level_of:
                raise ExportError(
                    f'{_where(node)}: its input {tensor!r} is not a sparse tensor of a node before it'
                )
        levels = {self.level_of[tensor] for tensor in node.inputs}
        if len(levels) != 1:
            raise ExportError(f'{_where(node)}: its inputs {node.inputs} are on different sites')
        return levels.pop()

    def _same(self, node: ir.Node) -> None:
        if any(tensor in self.level_of for tensor in node.inputs):
            self.level_of[node.output] = self._level(node)

    def _convolution(self, node: ir.SparseConvolution) -> None:
        _refuse(node)
        level = self._level(node)
        kept = keeps_sites(node)
        steps = ((1, 1, 1), (0, 0, 0)) if kept else (node.stride, node.padding)
        key = (level, kept, node.kernel_size, *steps, node.dilation)
        if key not in self.tables:
            self.tables[key] = self._table(node, key)
        table = self.tables[key]
        self.level_of[node.output], self.table_of[node.name] = table.level_out, table.name
        expected = self.shapes[level], self.shapes[table.level_out]
        given = tuple(node.input_spatial_shape), tuple(node.output_spatial_shape)
        if given != expected:
            raise ExportError(
                f'{_where(node)}: says grids {given[0]} -> {given[1]}; its geometry gives '
                f'{expected[0]} -> {expected[1]}'
            )

    def _table(self, node: ir.SparseConvolution, key: tuple) -> Table:
        taken = {table.name for table in self.tables.values()}
        name = node.rulebook if node.rulebook and node.rulebook not in taken else f'table_{node.name}'
        level = level_out = key[0]
        if not key[1]:
            level_out = len(self.shapes)
            self.shapes.append(dense_output_shape(self.shapes[level], *key[2:]))
        return Table(name, level, level_out, *key[1:])

    def _scatter(self, node: ir.ScatterDense) -> None:
        level = self._level(node)
        if tuple(node.spatial_shape) != self.shapes[level]:
            raise ExportError(
                f'{_where(node)}: says a grid of {node.spatial_shape}; its sites are in {self.shapes[level]}'
            )
        self.scatters.append(Scatter(node.name, level, _written_axes(self.graph, node)))


def keeps_sites(node: ir.SparseConvolution) -> bool:
    """Return whether the output sites are the input sites: submanifold, or a plain 1x1x1 kernel."""
    pointwise = node.kernel_size == node.stride == (1, 1, 1) and node.padding == (0, 0, 0)
    return node.subm or pointwise


def dense_output_shape(
    shape: Triple, kernel: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> Triple:
    """Return the grid after a convolution, as for a dense one."""
    sizes = zip(shape, kernel, stride, padding, dilation, strict=True)
    return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes)


def _written_axes(graph: SparseGraph, scatter: ir.ScatterDense) -> Triple:
    """Return the axes' order after the transposition that follows, where there is one of space alone."""
    users = [node for node in graph.nodes if scatter.output in node.inputs]
    if len(users) == 1 and isinstance(users[0], ir.Transpose) and tuple(users[0].dims[:2]) == (0, 1):
        return tuple(axis - 2 for axis in users[0].dims[2:])
    return (0, 1, 2)


def _refuse(node: ir.SparseConvolution) -> None:
    wrong = None
    if node.inverse or node.transposed:
        wrong = 'an inverse or transposed convolution'
    elif node.groups != 1:
        wrong = f'a convolution of {node.groups} groups'
    elif node.subm and any(size % 2 == 0 for size in node.kernel_size):
        wrong = f'a submanifold convolution with an even kernel {node.kernel_size}'
    elif node.activation not in ('None', 'ReLU'):
        wrong = f'activation {node.activation!r}'
    if wrong:
        raise ExportError(f'{_where(node)}: is {wrong}, which has no rulebook here')
    if node.weight.ndim != 5 or tuple(node.weight.shape[1:4]) != tuple(node.kernel_size):
        raise ExportError(
            f'{_where(node)}: weight {np.shape(node.weight)} for kernel {node.kernel_size}; expected '
            f'(O, k0, k1, k2, I)'
        )


def _where(node: ir.Node) -> str:
    return f'{node.name} ({node.module})' if node.module else node.name
