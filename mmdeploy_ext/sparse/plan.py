"""Levels of sites and tables of neighbours that the convolutions of a sparse graph share; names of rulebooks.

A level is a set of active sites. A table, also called rulebook, has the neighbours that a kernel has on them.
Numbers per axis are in the order of the graph, x, y, z or z, y, x (`SparseGraph.order`).
Needs numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.core.typed_json import JsonDataclass
from mmdeploy_ext.sparse.ir import Add, BatchNorm, Relu, ScatterDense, SparseConvolution, Transpose, Triple

if TYPE_CHECKING:
    from mmdeploy_ext.sparse.ir import Node, SparseGraph


@dataclasses.dataclass(frozen=True)
class Table(JsonDataclass):
    """One neighbour table; convolutions with the same sites and geometry share it.

    Attributes:
        name: the rulebook's name in the graph if it has one that is free; unique.
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
class Scatter(JsonDataclass):
    """One dense tensor, of a ScatterDense node.

    Attributes:
        name: name of the node.
        level: index of the level whose sites are written.
        axes: the spatial axes 0, 1, 2 of the sites in the order of the dense tensor, fastest one last; of the
            tensor behind the Transpose that alone reads it, if that moves no other axes.
    """

    name: str
    level: int
    axes: Triple


@dataclasses.dataclass(frozen=True)
class Plan(JsonDataclass):
    """The tables and dense tensors that `rulebook.build` has to make for a graph.

    Attributes:
        spatial_shape: grid of level 0, the voxels.
        tables: tables in the order in which they can be built; one without `subm` adds the next level.
        scatters: one per ScatterDense node.
        level_of: sparse tensor id -> level.
        table_of: convolution's name -> table's name.
    """

    spatial_shape: Triple
    tables: tuple[Table, ...]
    scatters: tuple[Scatter, ...]
    level_of: Mapping[str, int]
    table_of: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PortableFacts(JsonDataclass):
    """What a runtime of a portable graph has to know.

    Attributes:
        order: order of the axes of coordinates and of the plan.
        output_shape: (1, C, H, W) of its map.
    """

    form: Literal['buckets', 'tables']
    order: Literal['xyz', 'zyx']
    in_channels: int
    output_shape: tuple[int, ...]
    plan: Plan


def plan_of(graph: SparseGraph) -> Plan:
    """Return the sites and tables that the convolutions of a graph really share.

    Two convolutions share a table when they read the same sites with the same geometry; rulebook names in the
    graph only give tables their names, so missing or reused ones do not matter.

    Raises:
        ExportError: a node that has no rulebook here (inverse, transposed or grouped convolution, even
            submanifold kernel, another activation than ReLU), sites that do not fit together, or shapes that
            the geometry does not give.
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
    """Return tensor id -> level of sites of every sparse tensor, 0 being the voxels' own.

    Convolutions of `keeps_sites` keep them; two others, also of stride 1, with the same geometry on the same
    sites give the same new sites; an inverse convolution goes back to the input sites of the first
    convolution before it with its rulebook that is not submanifold.

    Raises:
        ExportError: an addition of tensors on different sites, a convolution of a dense tensor, or an inverse
            convolution without its counterpart; the node's module is named.
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
                f'{_title(node)}: adds tensors on different active sites, which no engine can; both branches '
                f'need the same strided convolutions'
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
    """Return whether the output sites are the input sites.

    They are if `node` is submanifold, or has a 1x1x1 kernel without stride and padding. Whether it is an
    inverse convolution, which has other ones, the caller looks at.
    """
    pointwise = node.kernel_size == node.stride == (1, 1, 1) and node.padding == (0, 0, 0)
    return node.subm or pointwise


def dense_output_shape(
    shape: Triple, kernel: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> Triple:
    """Return the grid after a convolution that is not submanifold, as for a dense one.

    `shape` is the grid before it, in sites; the others are its geometry. All are numbers per axis; a result
    below 1 is of a kernel that has no room.
    """
    sizes = zip(shape, kernel, stride, padding, dilation, strict=True)
    return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes)


def _written_axes(graph: SparseGraph, scatter: ScatterDense) -> Triple:
    """Return the axes' order after the transposition that follows, if there is one of space alone."""
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
            f'{_title(node)}: says grids {stated[0]} -> {stated[1]}; its geometry gives {grid} -> '
            f'{output_grid}'
        )


def _not_sparse(node: Node, tensor: str) -> ExportError:
    return ExportError(f'{_title(node)}: its input {tensor!r} is not a sparse tensor of a node before it')


def _title(node: Node) -> str:
    return f'{node.name} ({node.module})' if node.module else node.name


# ---- names


def name_rulebooks(graph: SparseGraph) -> SparseGraph:
    """Return the graph with rulebook names that only convolutions with the same neighbours share.

    A convolution's own name (its module's indice_key) stays. A submanifold convolution without one takes the
    name of another with the same sites, kernel and dilation, or else `subm{level + 1}`: that is what the
    reference exporter writes for the blocks of BEVFusion's stages. Strided convolutions without a name keep
    none. A name that already stands for other neighbours gets the kernel appended, and a number if that is
    taken, too: spconv does not look at the key of a 1x1x1 convolution, but an engine does.

    Raises:
        ExportError: as `site_levels`.
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
