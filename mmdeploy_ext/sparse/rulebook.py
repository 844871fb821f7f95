"""The rulebook of a sparse network, from coordinates alone: which site meets which weight. Needs no torch.

Glossary: N input sites, M output sites, K = k0*k1*k2 kernel offsets in row-major order. A table says for
every offset and output row which input row, times the weight of that offset, is added to it.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.preprocess import voxel_hash
from mmdeploy_ext.preprocess.voxel_hash import LEAST_SLOTS, empty_slots
from mmdeploy_ext.sparse.plan import dense_output_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.sparse.ir import Triple
    from mmdeploy_ext.sparse.plan import Plan


class Level:
    """Active sites of one resolution, on a grid of `spatial_shape`; their hash is made when it is needed.

    `coordinates` are (N, 4) integers, sample and the three axes in the graph's order, and are kept as int32;
    other shapes, numbers of other kinds, and sites outside the grid are a DataError.
    """

    def __init__(self, coordinates: np.ndarray, spatial_shape: Sequence[int]) -> None:
        self.coordinates = _checked(np.asarray(coordinates), spatial_shape)
        self.spatial_shape: Triple = tuple(int(size) for size in spatial_shape)

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def shape(self) -> np.ndarray:
        """Grid size per axis, (3,) int64."""
        return np.array(self.spatial_shape, np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Row-major index of every site in (sample, axes), (N,) int64."""
        keys = self.coordinates[:, 0].astype(np.int64)
        for axis, size in enumerate(self.spatial_shape):
            keys = keys * size + self.coordinates[:, axis + 1]
        return keys

    @functools.cached_property
    def hash(self) -> tuple[np.ndarray, np.ndarray, np.uint64]:
        """Hash table of the sites: the key in each slot, its row, and the shift, see `voxel_hash.fill`.

        Raises:
            DataError: a site is there twice.
        """
        slots, shift = empty_slots(len(self))
        rows, keys = np.empty(len(slots), np.int32), self.keys
        row = voxel_hash.fill(keys, slots, rows, shift)
        if row >= 0:
            first = int(np.flatnonzero(keys == keys[row])[0])
            raise DataError(
                f'coordinates: rows {first} and {row} are the same voxel {self.coordinates[row].tolist()}; '
                f'expected every voxel once: merge the points of a voxel, as `voxelise` of preprocess.points '
                f'does'
            )
        return slots, rows, shift


def _checked(coordinates: np.ndarray, spatial_shape: Sequence[int]) -> np.ndarray:
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype.kind not in 'iu':
        raise DataError(
            f'coordinates: got {coordinates.dtype} of shape {coordinates.shape}, expected integers (N, 4): '
            f'sample and the three axes'
        )
    upper = np.array([np.iinfo(np.int32).max, *spatial_shape])
    if len(coordinates) and (coordinates.min() < 0 or (coordinates.max(0) >= upper).any()):
        row = int(np.flatnonzero(((coordinates < 0) | (coordinates >= upper)).any(1))[0])
        raise DataError(
            f'coordinates: row {row} is {coordinates[row].tolist()}, outside the grid (sample, '
            f'{", ".join(map(str, spatial_shape))}); check the axis order and the point cloud range'
        )
    return np.ascontiguousarray(coordinates, np.int32)


@dataclasses.dataclass(frozen=True)
class _Search:
    """The table of one convolution, filled in parts that may run on any number of threads.

    Attributes:
        table: (K, M) int32, offset by offset the input row of every output row; N: no neighbour.
        count: number of offsets to look up.
        look_up: fills the table's rows of a slice of these offsets, and others that follow from them.
        outputs: the output sites.
    """

    table: np.ndarray
    count: int
    look_up: Callable[[slice], None]
    outputs: Level


def _submanifold(level: Level, kernel_size: Sequence[int], dilation: Sequence[int]) -> _Search:
    """Return the search of a submanifold convolution.

    Offset K-1-k has the pairs of offset k with the sides changed, so half of them are looked up.
    """
    steps = (_offsets(kernel_size) - np.array(kernel_size, np.int64) // 2) * np.array(dilation, np.int64)
    centre, table = len(steps) // 2, np.empty((len(steps), len(level)), np.int32)
    table[centre] = np.arange(len(level))

    def look_up(part: slice) -> None:
        voxel_hash.neighbours(level.coordinates, level.shape, steps[part], *level.hash, table[part])
        voxel_hash.mirror(table[part], table[::-1][part])

    return _Search(table, centre, look_up, level)


def on_threads(work: Callable[[int], None], threads: int) -> None:
    """Call `work` with 0 .. threads-1, 0 on this thread, the others on one each; return when all have ended.

    `threads` is at least 1. An error of `work` is raised.
    """
    with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
        futures = [pool.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for future in futures:
            future.result()


def _offsets(kernel_size: Sequence[int]) -> np.ndarray:
    """Return the kernel offsets (K, 3) int64 in row-major order."""
    return np.indices(tuple(kernel_size)).reshape(3, -1).T.astype(np.int64)


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
) -> _Search:
    """Return the search of a strided convolution: for each input site the output site that it reaches."""
    shape = dense_output_shape(level.spatial_shape, kernel_size, stride, padding, dilation)
    if min(shape) < 1:
        raise DataError(f'a grid of {level.spatial_shape} is smaller than the kernel {tuple(kernel_size)}')
    targets = []  # per axis (kernel, size): the output position that an input reaches by an offset, or -1
    geometry = zip(level.spatial_shape, shape, kernel_size, stride, padding, dilation, strict=True)
    for size, output_size, kernel, step, pad, spread in geometry:
        shifted = np.arange(size) + pad - np.arange(kernel)[:, None] * spread
        inside = (shifted >= 0) & (shifted % step == 0) & (shifted // step < output_size)
        targets.append(np.where(inside, shifted // step, -1).astype(np.int32))
    axes = tuple(targets)
    outputs, offsets = _reached_level(level, shape, axes), _offsets(kernel_size)
    table = np.empty((len(offsets), len(outputs)), np.int32)

    def look_up(part: slice) -> None:
        voxel_hash.reach(level.coordinates, outputs.shape, axes, offsets[part], *outputs.hash, table[part])

    return _Search(table, len(offsets), look_up, outputs)


def pairs(
    coordinates: np.ndarray, spatial_shape: Sequence[int], subm: bool, *geometry: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sites (M, 4) int32 that one convolution writes, and its table (K, M) int32.

    In the table N stands for no neighbour. Sites are those given if it is submanifold, in their order; else
    they ascend by sample and axes.

    Args:
        coordinates: (N, 4) integers, sample and axes; every site once, which a strided one does not check.
        spatial_shape: grid of the sites, per axis.
        subm: whether it is submanifold: it then centres its kernel and ignores stride and padding.
        *geometry: kernel size, stride, padding and dilation, per axis; that a submanifold one has odd sizes
            is not checked.

    Raises:
        DataError: coordinates of another shape, that are no integers, or outside the grid; a site twice, of a
            submanifold one of several offsets; a grid that is smaller than the kernel of a strided one.
    """
    search = _search(Level(coordinates, spatial_shape), subm, *geometry)
    if search.count:
        search.look_up(slice(0, search.count))
    return search.outputs.coordinates, search.table


def _search(level: Level, subm: bool, *geometry: Sequence[int]) -> _Search:
    return _submanifold(level, geometry[0], geometry[-1]) if subm else _strided(level, *geometry)


@dataclasses.dataclass(frozen=True)
class Rulebook:
    """Sites, neighbour tables and cells of one set of voxels, for the plan of a network.

    Attributes:
        levels: sites of every level of the plan.
        tables: table name -> (K, M) int32, offset by offset the input row of every output row; N, one behind
            the last input row: no neighbour.
        cells: scatter node's name -> (N,) int64, indices of its sites in the flattened dense grid, whose axes
            are in the order of `Scatter.axes`.
        level_of: tensor id -> index of its level.
    """

    levels: tuple[Level, ...]
    tables: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    level_of: dict[str, int]

    def level(self, tensor: str) -> Level:
        """Return the sites of a sparse tensor, by its id in the graph; KeyError: it is dense or unknown."""
        return self.levels[self.level_of[tensor]]


def build(plan: Plan, coordinates: np.ndarray, threads: int = 1) -> Rulebook:
    """Build the rulebook of a network for one set of voxels.

    Args:
        plan: layers and grids of the network.
        coordinates: (N, 4) integers, sample and the axes in the graph's order; every voxel once; N may be 0.
        threads: number of threads that look up neighbours, at least 1; the result does not depend on it.

    Raises:
        DataError: coordinates of another shape, that are no integers, outside the grid, or twice; a sample
            other than 0 for a dense output; a grid that is smaller than the kernel of a strided convolution.
    """
    levels: list[Level] = [Level(coordinates, plan.spatial_shape)]
    if plan.scatters and len(levels[0]) and levels[0].coordinates[:, 0].any():
        raise DataError('coordinates: the sample index is not 0 everywhere; expected one sweep at a time')
    _ = levels[0].hash  # refuses a site that is there twice
    searches: list[_Search] = []
    for table in plan.tables:
        geometry = table.kernel_size, table.stride, table.padding, table.dilation
        searches.append(_search(levels[table.level_in], table.subm, *geometry))
        if not table.subm:
            levels.append(searches[-1].outputs)

    def look_up(thread: int) -> None:
        for search in searches:
            part = slice(search.count * thread // threads, search.count * (thread + 1) // threads)
            if part.start < part.stop:
                search.look_up(part)

    on_threads(look_up, threads)
    tables = {table.name: search.table for table, search in zip(plan.tables, searches, strict=True)}
    cells = {}
    for scatter in plan.scatters:
        level = levels[scatter.level]
        cells[scatter.name] = np.zeros(len(level), np.int64)
        for axis in scatter.axes:
            cells[scatter.name] *= level.spatial_shape[axis]
            cells[scatter.name] += level.coordinates[:, axis + 1]
    return Rulebook(tuple(levels), tables, cells, dict(plan.level_of))
