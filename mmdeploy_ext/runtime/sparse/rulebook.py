"""The rulebook of a sparse network from coordinates alone. Needs no torch.

N input sites, M output sites, K = k0*k1*k2 kernel offsets, row-major. A table has the input row per offset
and output row.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.preprocess import voxel_hash
from mmdeploy_ext.runtime.preprocess.voxel_hash import LEAST_SLOTS, empty_slots
from mmdeploy_ext.runtime.sparse.plan import dense_output_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.sparse.ir import Triple
    from mmdeploy_ext.runtime.sparse.plan import Plan


class Level:
    """Active sites (N, 4) int32 of one resolution, sample and axes in the graph's order; hashed on demand.

    DataError: malformed, or outside of the grid.
    """

    def __init__(self, coordinates: np.ndarray, spatial_shape: Sequence[int]) -> None:
        self.coordinates = _checked(np.asarray(coordinates), spatial_shape)
        self.spatial_shape: Triple = tuple(int(size) for size in spatial_shape)

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def shape(self) -> np.ndarray:
        return np.array(self.spatial_shape, np.int64)

    @property
    def keys(self) -> np.ndarray:
        keys = self.coordinates[:, 0].astype(np.int64)
        for axis, size in enumerate(self.spatial_shape):
            keys = keys * size + self.coordinates[:, axis + 1]
        return keys

    @functools.cached_property
    def hash(self) -> tuple[np.ndarray, np.ndarray, np.uint64]:
        """Slots, rows and shift, see `voxel_hash.fill`; DataError: a repeated site."""
        slots, shift = empty_slots(len(self))
        rows, keys = np.empty(len(slots), np.int32), self.keys
        row = voxel_hash.fill(keys, slots, rows, shift)
        if row >= 0:
            first = int(np.flatnonzero(keys == keys[row])[0])
            raise DataError(
                f'coordinates: rows {first} and {row} are the same voxel '
                f'{self.coordinates[row].tolist()}; expected each voxel once: merge the points of a '
                'voxel, as in `voxelise` of runtime.preprocess.points'
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
    """The table of one convolution, filled in parts on any number of threads.

    Attributes:
        table: (K, M) int32 input rows; N for none.
        count: offsets to look up.
        look_up: fills the table for a slice of these offsets.
        outputs: output sites.
    """

    table: np.ndarray
    count: int
    look_up: Callable[[slice], None]
    outputs: Level


def _submanifold(level: Level, kernel_size: Sequence[int], dilation: Sequence[int]) -> _Search:
    """Offset K-1-k has the pairs of offset k with sides changed, so half are looked up."""
    steps = (_offsets(kernel_size) - np.array(kernel_size, np.int64) // 2) * np.array(dilation, np.int64)
    centre, table = len(steps) // 2, np.empty((len(steps), len(level)), np.int32)
    table[centre] = np.arange(len(level))

    def look_up(part: slice) -> None:
        voxel_hash.neighbours(level.coordinates, level.shape, steps[part], *level.hash, table[part])
        voxel_hash.mirror(table, part.start, part.stop)

    return _Search(table, centre, look_up, level)


def on_threads(work: Callable[[int], None], threads: int) -> None:
    """Call `work` with 0 .. threads-1, 0 on this thread; errors are raised."""
    with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
        futures = [pool.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for future in futures:
            future.result()


def _offsets(kernel_size: Sequence[int]) -> np.ndarray:
    return np.ascontiguousarray(np.indices(tuple(kernel_size)).reshape(3, -1).T, np.int64)


def _reached_level(level: Level, shape: Triple, axes: tuple[np.ndarray, ...]) -> Level:
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
    """Output sites (M, 4) int32 of one convolution, and its table (K, M) int32, N for none.

    Submanifold: the given sites in order; else ascending by sample and axes. `coordinates` (N, 4) are
    distinct; `geometry` is kernel size, stride, padding and dilation per axis. DataError: malformed
    coordinates, or no room for the kernel.
    """
    search = _search(Level(coordinates, spatial_shape), subm, *geometry)
    if search.count:
        search.look_up(slice(0, search.count))
    return search.outputs.coordinates, search.table


def _search(level: Level, subm: bool, *geometry: Sequence[int]) -> _Search:
    return _submanifold(level, geometry[0], geometry[-1]) if subm else _strided(level, *geometry)


@dataclasses.dataclass(frozen=True)
class Rulebook:
    """Sites, neighbour tables and cells of one set of voxels.

    Attributes:
        levels: sites of every level.
        tables: table -> (K, M) int32 input rows; N for none.
        cells: scatter -> (N,) int64 indices in the flattened dense grid, axes as `Scatter.axes`.
        level_of: tensor id -> index of its level.
    """

    levels: tuple[Level, ...]
    tables: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    level_of: dict[str, int]

    def level(self, tensor: str) -> Level:
        """Sites of a sparse tensor by id; KeyError: dense or unknown."""
        return self.levels[self.level_of[tensor]]


def build(plan: Plan, coordinates: np.ndarray, threads: int = 1) -> Rulebook:
    """Build the rulebook for coordinates (N, 4), distinct, sample and axes in the graph's order.

    DataError: malformed, outside of the grid, repeated, another sample than 0 for a dense output, or no room
    for the kernel.
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
