"""Sweeps of the generated world, for proofs without a data set."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.runtime.frames import Sweep

PICTURE = 32, 32
"""Width and height, pixels, of the rig's cameras, whose pictures are not used."""


def generated(rule: VoxelRule, count: int) -> Iterator[Sweep]:
    """Yield sweeps of the generated world, each of another scene.

    Values of a point beyond x, y, z, intensity and ring are zero, as the time lag of a sweep.
    """
    from mmdeploy_ext.synthetic.nuscenes_sensors import LIDAR, make_rig, measure_sweep
    from mmdeploy_ext.synthetic.nuscenes_world import make_world

    for index in range(count):
        rng = np.random.default_rng(index)
        world, rig = make_world(rng, 1, 0.0), make_rig(rng, *PICTURE)
        things = [world.things[number] for number in np.flatnonzero(world.active[0])]
        measured, _ = measure_sweep(rig[LIDAR], world, things, 0.0, rng)
        points = np.zeros((len(measured), rule.in_channels), np.float32)
        width = min(points.shape[1], measured.shape[1])
        points[:, :width] = measured[:, :width]
        yield Sweep(points, f'generated sweep {index}')


FEW, MANY = 5_000, 60_000
"""Voxels of a crowded sweep at most: where the grid has several layers, and of pillars."""
FULL = 0.02
"""Share of its voxels that have more points than count."""


def in_order_of_columns(sweep: Sweep, rule: VoxelRule) -> Sweep:
    """Return a sweep whose points are in the order of their cells: x from the last, then y from the first.

    Of such a sweep the first cells are the same in the order of the points and in that of the cells.
    """
    low, size = np.float32(rule.point_cloud_range[:2]), np.float32(rule.voxel_size[:2])
    x, y = np.floor((sweep.points[:, :2] - low) / size).T
    return dataclasses.replace(sweep, points=sweep.points[np.lexsort((y, -x))])


def crowded(rule: VoxelRule) -> Iterator[Sweep]:
    """Yield a sweep of more voxels than a model takes, and of more points in some than count.

    Some points are on the edge of the range; all others are away from the faces of voxels, where float32
    decides. Without a limit, and where one is over `FEW` or `MANY`, so many voxels have points.
    """
    rng, grid = np.random.default_rng(0), np.array(rule.grid_size)
    room = FEW if grid[2] > 1 else MANY
    count = min(rule.max_voxels + rule.max_voxels // 20 + 10, room) if rule.max_voxels > 0 else FEW
    cells = np.unique(rng.integers(0, int(np.prod(grid)), 2 * count))
    cells = rng.permutation(cells)[:count]
    full = np.repeat(cells[: int(FULL * count) + 1], 2 * max(rule.max_points, 1))
    cells = rng.permutation(np.concatenate([cells, full]))
    places = np.stack(np.unravel_index(cells, grid), 1) + rng.uniform(0.2, 0.8, (len(cells), 3))
    low, high = np.array(rule.point_cloud_range).reshape(2, 3)
    points = np.zeros((len(cells) + 6, rule.in_channels), np.float32)
    points[6:, :3] = places * rule.voxel_size + low
    points[:6, :3] = (low + high) / 2 + 0.3 * np.array(rule.voxel_size)
    for axis in range(3):  # the first ones, since the last voxels do not count
        points[2 * axis, axis], points[2 * axis + 1, axis] = low[axis], high[axis]
    points[:, 3:4] = rng.random((len(points), 1))
    yield Sweep(points, 'more voxels and points than count')
