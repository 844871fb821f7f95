"""Which site meets which weight: the rulebook of a sparse network, from coordinates alone. Needs no torch.

Glossary: N input sites, M output sites, K = k0*k1*k2 kernel offsets in row-major order. A table says for
every offset and output row which input row, times the weight of that offset, is added to it.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import PointsError
from mmdeploy_ext.inputs import voxel_hash
from mmdeploy_ext.inputs.voxel_hash import LEAST_SLOTS, empty_slots
from mmdeploy_ext.sparse.level import Level
from mmdeploy_ext.sparse.plan import dense_output_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.sparse.ir import Triple
    from mmdeploy_ext.sparse.plan import Plan


class _Search:
    """The table of one convolution, found in two rounds whose parts may run on any number of threads.

    Attributes:
        table: (K, M) int32, offset by offset the input row of every output row; N says that there is none.
        looked_up: offsets that are looked up in the first round; the second fills in the others.
    """

    table: np.ndarray
    looked_up: int

    def look(self, part: slice) -> None:
        """Look up some offsets."""
        raise NotImplementedError

    def complete(self, part: slice) -> None:
        """Fill in what follows from these offsets."""


class _Submanifold(_Search):
    """Offset K-1-k has the pairs of offset k with the sides changed, so half of them are looked up."""

    def __init__(self, level: Level, kernel_size: Sequence[int], dilation: Sequence[int]) -> None:
        steps = (_offsets(kernel_size) - np.array(kernel_size, np.int64) // 2) * np.array(dilation, np.int64)
        self.level, self.steps, self.looked_up = level, steps, len(steps) // 2
        self.table = np.empty((len(steps), len(level)), np.int32)
        self.table[self.looked_up] = np.arange(len(level))

    def look(self, part: slice) -> None:
        shape, steps = self.level.shape, self.steps[part]
        voxel_hash.neighbours(self.level.coordinates, shape, steps, *self.level.hash, self.table[part])

    def complete(self, part: slice) -> None:
        voxel_hash.mirror(self.table[part], self.table[::-1][part])


class _Strided(_Search):
    """Every input site looks for the output site that it reaches by each offset."""

    def __init__(self, level: Level, reached: Level, axes: tuple[np.ndarray, ...]) -> None:
        self.level, self.reached, self.axes = level, reached, axes
        self.offsets = _offsets([len(targets) for targets in axes])
        self.looked_up = len(self.offsets)
        self.table = np.empty((self.looked_up, len(reached)), np.int32)

    def look(self, part: slice) -> None:
        shape, offsets = self.reached.shape, self.offsets[part]
        voxel_hash.reach(
            self.level.coordinates, shape, self.axes, offsets, *self.reached.hash, self.table[part]
        )


def _find(searches: Sequence[_Search], threads: int) -> list[np.ndarray]:
    """Do all searches; every thread does its part of the offsets of each."""
    sizes = [search.looked_up for search in searches]
    _parallel([search.look for search in searches], sizes, threads)
    _parallel([search.complete for search in searches], sizes, threads)
    return [search.table for search in searches]


def _parallel(functions: Sequence[Callable[[slice], None]], items: Sequence[int], threads: int) -> None:
    """Call every function with all parts of its items, one part per thread."""

    def do(thread: int) -> None:
        for function, size in zip(functions, items, strict=True):
            part = slice(size * thread // threads, size * (thread + 1) // threads)
            if part.start < part.stop:
                function(part)

    on_threads(do, threads)


def on_threads(do: Callable[[int], None], threads: int) -> None:
    """Call `do` with 0 .. threads-1, each on a thread of its own."""
    with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
        others = [pool.submit(do, thread) for thread in range(1, threads)]
        do(0)
        for other in others:
            other.result()


def _offsets(kernel_size: Sequence[int]) -> np.ndarray:
    """Return the kernel offsets (K, 3) int64 in row-major order."""
    return np.indices(tuple(kernel_size)).reshape(3, -1).T.astype(np.int64)


def _axis_targets(
    size: int, target: int, kernel: int, stride: int, padding: int, dilation: int
) -> np.ndarray:
    """Return the output position that an input position reaches by an offset, (kernel, size), or -1."""
    reached = np.arange(size) + padding - np.arange(kernel)[:, None] * dilation
    inside = (reached >= 0) & (reached % stride == 0) & (reached // stride < target)
    return np.where(inside, reached // stride, -1).astype(np.int32)


def _reached_level(level: Level, shape: Triple, axes: tuple[np.ndarray, ...]) -> Level:
    """Return the sites that a strided convolution reaches, in ascending order of their keys."""
    sizes, room = np.array(shape, np.int64), max(2 * len(level), LEAST_SLOTS)
    while True:
        slots, shift = empty_slots(room)
        keys = np.empty(room, np.int64)
        reached = voxel_hash.reached_keys(level.coordinates, sizes, axes, slots, shift, keys)
        if reached >= 0:
            break
        room *= 2
    keys = np.sort(keys[:reached])
    coordinates = np.empty((reached, 4), np.int32)
    for axis in (2, 1, 0):
        keys, coordinates[:, axis + 1] = np.divmod(keys, shape[axis])
    coordinates[:, 0] = keys
    return Level(coordinates, shape)


def _strided(
    level: Level,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> _Strided:
    shape = dense_output_shape(level.spatial_shape, kernel_size, stride, padding, dilation)
    if min(shape) < 1:
        raise PointsError(f'a grid of {level.spatial_shape} is smaller than the kernel {tuple(kernel_size)}')
    geometry = zip(level.spatial_shape, shape, kernel_size, stride, padding, dilation, strict=True)
    axes = tuple(_axis_targets(*axis) for axis in geometry)
    return _Strided(level, _reached_level(level, shape, axes), axes)


def pairs(
    coordinates: np.ndarray,
    spatial_shape: Sequence[int],
    subm: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sites (M, 4) int32 that one convolution writes, and its table (K, M) int32.

    Args:
        coordinates: (N, 4) integers: sample and the axes.
        spatial_shape: grid size per axis.
        subm: submanifold; it centres its kernel and ignores stride and padding.
        kernel_size: per axis, as are those that follow.
        stride: of the sites that are written.
        padding: at both ends.
        dilation: of the kernel.

    Raises:
        PointsError: coordinates outside the grid, or duplicates.
    """
    level = Level(coordinates, spatial_shape)
    if subm:
        (table,) = _find([_Submanifold(level, kernel_size, dilation)], 1)
        return level.coordinates, table
    search = _strided(level, kernel_size, stride, padding, dilation)
    (table,) = _find([search], 1)
    return search.reached.coordinates, table


@dataclasses.dataclass(frozen=True)
class Rulebook:
    """All that a network's plan needs to know about one set of voxels.

    Attributes:
        levels: sites of every level of the plan.
        tables: table name -> (K, M) int32, offset by offset the input row of every output row; N, one behind
            the last input row, says that there is none.
        cells: scatter node's name -> (n,) int64, where its sites are in the flattened dense grid.
        level_of: tensor id -> index of its level.
    """

    levels: tuple[Level, ...]
    tables: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    level_of: dict[str, int]

    def level(self, tensor: str) -> Level:
        """Return the sites of a sparse tensor."""
        return self.levels[self.level_of[tensor]]

    def table(self, name: str) -> np.ndarray:
        """Return a table output row by output row: a view (M, K)."""
        return self.tables[name].T


def build(plan: Plan, coordinates: np.ndarray, threads: int = 1) -> Rulebook:
    """Build the rulebook of a network for one set of voxels.

    Args:
        plan: what the network needs.
        coordinates: (N, 4) int32, sample and the axes in the graph's order; every voxel once; N may be 0.
        threads: how many threads look up; the result does not depend on it.

    Raises:
        PointsError: coordinates outside the grid, duplicates, or more than one sample for a dense output.
    """
    levels: list[Level] = [Level(coordinates, plan.spatial_shape)]
    if plan.scatters and len(levels[0]) and levels[0].coordinates[:, 0].any():
        raise PointsError('coordinates: the sample index is not 0 everywhere; expected one sweep at a time')
    _ = levels[0].hash
    searches: list[_Search] = []
    for table in plan.tables:
        source = levels[table.level_in]
        if table.subm:
            searches.append(_Submanifold(source, table.kernel_size, table.dilation))
        else:
            search = _strided(source, table.kernel_size, table.stride, table.padding, table.dilation)
            searches.append(search)
            levels.append(search.reached)
    tables = dict(zip((table.name for table in plan.tables), _find(searches, threads), strict=True))
    cells = {scatter.name: _cells(levels[scatter.level], scatter.axes) for scatter in plan.scatters}
    return Rulebook(tuple(levels), tables, cells, dict(plan.level_of))


def _cells(level: Level, axes: Triple) -> np.ndarray:
    cells = np.zeros(len(level), np.int64)
    for axis in axes:
        cells = cells * level.spatial_shape[axis] + level.coordinates[:, axis + 1]
    return cells
