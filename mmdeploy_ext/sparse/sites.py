"""Which tensors of a sparse graph have the same active sites, and the names of rulebooks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.sparse.ir import Add, BatchNorm, Relu, SparseConvolution
from mmdeploy_ext.sparse.plan import keeps_sites

if TYPE_CHECKING:
    from mmdeploy_ext.sparse.ir import SparseGraph


def site_levels(graph: SparseGraph) -> dict[str, int]:
    """Return tensor id -> level of sites of every sparse tensor, 0 being the voxels' own.

    Submanifold and 1x1x1 convolutions keep their sites; two strided convolutions with the same geometry on
    the same sites give the same sites; an inverse convolution goes back to the sites of the convolution with
    its rulebook.

    Raises:
        ExportError: an addition of tensors on different sites, or an inverse convolution without its
            counterpart; the node's module is named.
    """
    levels: dict[str, int] = {'0': 0}
    known: dict[tuple, int] = {}
    origins: dict[str, int] = {}
    for node in graph.nodes:
        if isinstance(node, SparseConvolution):
            before = levels[node.inputs[0]]
            levels[node.output] = _output_level(node, before, known, origins)
            if node.rulebook and not node.subm:
                origins.setdefault(node.rulebook, before)
        elif isinstance(node, BatchNorm | Relu | Add):
            found = {levels.get(name) for name in node.inputs}
            if len(found) != 1 or None in found:
                raise ExportError(
                    f'{node.module or node.name}: adds tensors on different active sites, which no engine '
                    f'can; both branches need the same strided convolutions'
                )
            levels[node.output] = found.pop()
    return levels


def _output_level(
    node: SparseConvolution, before: int, known: dict[tuple, int], origins: dict[str, int]
) -> int:
    if node.inverse:
        if node.rulebook not in origins:
            raise ExportError(
                f'{node.module or node.name}: is an inverse convolution with indice_key='
                f'{node.rulebook!r}, which no strided convolution before it has'
            )
        return origins[node.rulebook]
    if keeps_sites(node):
        return before
    geometry = (before, node.kernel_size, node.stride, node.padding, node.dilation)
    return known.setdefault(geometry, 1 + len(known))


def name_rulebooks(graph: SparseGraph) -> SparseGraph:
    """Return the graph with rulebook names that convolutions with the same neighbours share, and only they.

    A convolution's own name (its module's indice_key) stays. A submanifold convolution without one takes the
    name of another with the same sites, kernel and dilation, or else `subm{level + 1}`: that is what the
    reference exporter writes for the blocks of BEVFusion's stages. Strided convolutions without a name keep
    none. A name that already stands for other neighbours gets the kernel appended: spconv does not look at
    the key of a 1x1x1 convolution, but an engine does.

    Raises:
        ExportError: as `site_levels`.
    """
    levels = site_levels(graph)
    owners: dict[str, tuple] = {}
    names: dict[tuple, str] = {}
    chosen: dict[str, str | None] = {}
    named = [node for node in graph.convolutions() if node.rulebook]
    for node in (*named, *(node for node in graph.convolutions() if node.subm and not node.rulebook)):
        group = _neighbours(node, levels)
        if node.rulebook or group not in names:
            name = node.rulebook or f'subm{levels[node.inputs[0]] + 1}'
            chosen[node.name] = _unique(name, node, group, owners)
            names.setdefault(group, chosen[node.name])
        else:
            chosen[node.name] = names[group]
    nodes = (
        dataclasses.replace(node, rulebook=chosen[node.name]) if node.name in chosen else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _neighbours(node: SparseConvolution, levels: dict[str, int]) -> tuple:
    ends = levels[node.inputs[0]], levels[node.output]
    if node.subm:
        return (ends[0], node.kernel_size, node.dilation)
    # an inverse convolution shares the rulebook of its counterpart, which goes from its output to its input
    return (*(ends[::-1] if node.inverse else ends), node.kernel_size, node.dilation)


def _unique(name: str, node: SparseConvolution, group: tuple, owners: dict[str, tuple]) -> str:
    kernel = 'x'.join(map(str, node.kernel_size))
    candidate, number = name, 1
    while owners.setdefault(candidate, group) != group:
        candidate = f'{name}_{kernel}' if number == 1 else f'{name}_{kernel}_{number}'
        number += 1
    return candidate
