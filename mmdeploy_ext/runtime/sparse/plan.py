"""Levels of sites and tables of neighbours that convolutions share; names of rulebooks.

A level is a set of active sites, a table (rulebook) a kernel's neighbours on them. Axes are in
`SparseGraph.order`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.base.typed_json import JsonDataclass
from mmdeploy_ext.runtime.sparse.ir import (
    Add,
    BatchNorm,
    Node,
    Relu,
    ScatterDense,
    SparseConvolution,
    SparseGraph,
    Transpose,
    Triple,
)


@dataclasses.dataclass(frozen=True)
class Table(JsonDataclass):
    """One neighbour table; convolutions with the same sites and geometry share it.

    Attributes:
        level_in, level_out: levels that it reads and writes.
        subm: output sites are input sites.
        kernel_size, stride, padding, dilation: per axis; submanifold: stride 1, padding 0.
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
class Scatter(JsonDataclass):
    """One dense tensor of a ScatterDense node.

    Attributes:
        level: level of the sites.
        axes: order of the sites' axes 0, 1, 2 in the dense tensor, behind a following Transpose, fastest
            last.
    """

    name: str
    level: int
    axes: Triple


@dataclasses.dataclass(frozen=True)
class Plan(JsonDataclass):
    """Tables and dense tensors that `rulebook.build` makes for a graph.

    Attributes:
        spatial_shape: grid of level 0, the voxels.
        tables: in order; each without `subm` adds a level.
        level_of: sparse tensor id -> level.
        table_of: convolution -> table.
    """

    spatial_shape: Triple
    tables: tuple[Table, ...]
    scatters: tuple[Scatter, ...]
    level_of: Mapping[str, int]
    table_of: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PortableFacts(JsonDataclass):
    """Facts for a runtime of a portable graph: order of axes, (1, C, H, W) of the map, and the plan."""

    form: Literal['buckets', 'tables']
    order: Literal['xyz', 'zyx']
    in_channels: int
    output_shape: tuple[int, ...]
    plan: Plan


def plan_of(graph: SparseGraph) -> Plan:
    """Sites and tables that convolutions share by sites and geometry, whatever their rulebooks' names.

    ExportError: no rulebook here (inverse, transposed or grouped convolution, even submanifold kernel,
    another activation than ReLU), or unfitting sites or shapes.
    """
    for node in graph.convolutions():
        _check_convolution(node)
    levels = site_levels(graph)
    grids: list[Triple] = [tuple(graph.spatial_shape)]
    tables: dict[tuple, Table] = {}
    scatters: list[Scatter] = []
    table_of: dict[str, str] = {}
    for node in graph.nodes:
        level = levels.get(node.inputs[0])
        if isinstance(node, SparseConvolution):
            subm = keeps_sites(node)
            steps = ((1, 1, 1), (0, 0, 0)) if subm else (node.stride, node.padding)
            geometry = (subm, node.kernel_size, *steps, node.dilation)
            if (level, geometry) not in tables:
                if not subm:
                    grids.append(dense_output_shape(grids[level], *geometry[1:]))
                names = {table.name for table in tables.values()}
                is_free = node.rulebook and node.rulebook not in names
                name = node.rulebook if is_free else f'table_{node.name}'
                tables[level, geometry] = Table(name, level, levels[node.output], *geometry)
            table_of[node.name] = tables[level, geometry].name
            _check_grids(node, grids[level], grids[levels[node.output]])
        elif isinstance(node, ScatterDense):
            if level is None:
                raise _not_sparse(node, node.inputs[0])
            if tuple(node.spatial_shape) != grids[level]:
                raise ExportError(
                    f'{_title(node)}: says a grid of {node.spatial_shape}; its sites are in {grids[level]}'
                )
            scatters.append(Scatter(node.name, level, _written_axes(graph, node)))
        elif node.output not in levels and any(tensor in levels for tensor in node.inputs):
            raise ExportError(
                f'{_title(node)}: {node.op_type} of a sparse tensor; expected it after ScatterDense'
            )
    return Plan(grids[0], tuple(tables.values()), tuple(scatters), levels, table_of)


def site_levels(graph: SparseGraph) -> dict[str, int]:
    """Sparse tensor id -> level of sites, 0 for the voxels; ExportError: sites do not fit.

    Equal geometry on equal sites gives equal sites; an inverse convolution goes back to its rulebook's input
    sites.
    """
    levels: dict[str, int] = {'0': 0}
    strided: dict[tuple, int] = {}
    origins: dict[str, int] = {}
    for node in graph.nodes:
        is_convolution = isinstance(node, SparseConvolution)
        keeps_level = isinstance(node, Add | BatchNorm | Relu) and any(name in levels for name in node.inputs)
        if not is_convolution and not keeps_level:
            continue
        for tensor in node.inputs:
            if tensor not in levels:
                raise _not_sparse(node, tensor)
        level = levels[node.inputs[0]]
        if any(levels[tensor] != level for tensor in node.inputs):
            raise ExportError(
                f'{_title(node)}: adds tensors on different active sites, which is not possible; both '
                'branches need the same strided convolutions'
            )
        levels[node.output] = level
        if is_convolution and node.inverse:
            if node.rulebook not in origins:
                raise ExportError(
                    f'{_title(node)}: is an inverse convolution with indice_key={node.rulebook!r}, which no '
                    f'strided convolution before it has'
                )
            levels[node.output] = origins[node.rulebook]
        elif is_convolution and not keeps_sites(node):
            geometry = (level, node.kernel_size, node.stride, node.padding, node.dilation)
            levels[node.output] = strided.setdefault(geometry, 1 + len(strided))
        if is_convolution and node.rulebook and not node.subm:
            origins.setdefault(node.rulebook, level)
    return levels


def keeps_sites(node: SparseConvolution) -> bool:
    """Whether output sites are input sites: submanifold, or 1x1x1 without stride and padding."""
    pointwise = node.kernel_size == node.stride == (1, 1, 1) and node.padding == (0, 0, 0)
    return node.subm or pointwise


def dense_output_shape(
    shape: Triple, kernel: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> Triple:
    """Grid after a convolution that is not submanifold; below 1 the kernel has no room."""
    sizes = zip(shape, kernel, stride, padding, dilation, strict=True)
    return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes)


def _written_axes(graph: SparseGraph, scatter: ScatterDense) -> Triple:
    users = [node for node in graph.nodes if scatter.output in node.inputs]
    if len(users) == 1 and isinstance(users[0], Transpose) and tuple(users[0].dims[:2]) == (0, 1):
        return tuple(axis - 2 for axis in users[0].dims[2:])
    return (0, 1, 2)


def _check_convolution(node: SparseConvolution) -> None:
    problem = ''
    if node.inverse or node.transposed:
        problem = 'an inverse or transposed convolution'
    elif node.groups != 1:
        problem = f'a convolution of {node.groups} groups'
    elif node.subm and any(size % 2 == 0 for size in node.kernel_size):
        problem = f'a submanifold convolution with an even kernel {node.kernel_size}'
    elif node.activation not in ('None', 'ReLU'):
        problem = f'activation {node.activation!r}'
    if problem:
        raise ExportError(f'{_title(node)}: is {problem}, which has no rulebook here')
    if node.weight.ndim != 5 or tuple(node.weight.shape[1:4]) != tuple(node.kernel_size):
        raise ExportError(
            f'{_title(node)}: weight {np.shape(node.weight)} for kernel {node.kernel_size}; expected '
            f'(O, k0, k1, k2, I)'
        )


def _check_grids(node: SparseConvolution, grid: Triple, output_grid: Triple) -> None:
    stated = tuple(node.input_spatial_shape), tuple(node.output_spatial_shape)
    if stated != (grid, output_grid):
        raise ExportError(
            f'{_title(node)}: states grids {stated[0]} -> {stated[1]}, but its geometry gives {grid} -> '
            f'{output_grid}'
        )


def _not_sparse(node: Node, tensor: str) -> ExportError:
    return ExportError(f'{_title(node)}: its input {tensor!r} is not a sparse tensor of a node before it')


def _title(node: Node) -> str:
    return f'{node.name} ({node.module})' if node.module else node.name


# ---- names


def name_rulebooks(graph: SparseGraph) -> SparseGraph:
    """Give rulebook names that only convolutions with the same neighbours share.

    indice_keys stay; others become `subm{level + 1}` as in the reference exporter for BEVFusion; a used name
    gets the kernel and a number: spconv ignores the key of a 1x1x1 convolution, an engine does not.
    """
    levels = site_levels(graph)
    neighbours_of: dict[str, tuple] = {}
    names: dict[tuple, str] = {}
    rulebooks: dict[str, str] = {}
    with_key = [node for node in graph.convolutions() if node.rulebook]
    without_key = [node for node in graph.convolutions() if node.subm and not node.rulebook]
    for node in with_key + without_key:
        level = levels[node.inputs[0]]
        neighbours = (level, node.kernel_size, node.dilation)
        if not node.subm:
            # an inverse convolution shares the rulebook of its counterpart, which goes from its output to its
            # input
            ends = (level, levels[node.output])
            neighbours = (*(ends[::-1] if node.inverse else ends), node.kernel_size, node.dilation)
        if not node.rulebook and neighbours in names:
            rulebooks[node.name] = names[neighbours]
            continue
        key = node.rulebook or f'subm{level + 1}'
        kernel = 'x'.join(map(str, node.kernel_size))
        name, attempt = key, 1
        while neighbours_of.setdefault(name, neighbours) != neighbours:
            name = f'{key}_{kernel}' if attempt == 1 else f'{key}_{kernel}_{attempt}'
            attempt += 1
        rulebooks[node.name] = name
        names.setdefault(neighbours, name)
    nodes = (
        dataclasses.replace(node, rulebook=rulebooks[node.name]) if node.name in rulebooks else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=tuple(nodes))
