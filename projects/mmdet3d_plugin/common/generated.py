"""Sweeps of the generated world, for proofs without a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.inputs.points import VoxelRule

PICTURE = 32, 32
"""Width and height, pixels, of the rig's cameras, whose pictures are not used."""


def generated(rule: VoxelRule, count: int) -> Iterator[Sweep]:
    """Yield sweeps of the generated world, each of another scene.

    Args:
        rule: values per point; those beyond x, y, z, intensity and ring are zero, as the time lag of a sweep.
        count: how many.
    """
    from projects.toydata.nuscenes_lidar import sweep as measure
    from projects.toydata.nuscenes_rig import LIDAR, make_rig
    from projects.toydata.nuscenes_world import make_world

    for index in range(count):
        rng = np.random.default_rng(index)
        world, rig = make_world(rng, 1, 0.0), make_rig(rng, *PICTURE)
        things = [world.things[number] for number in np.flatnonzero(world.active[0])]
        measured, _ = measure(rig[LIDAR], world, things, 0.0, rng)
        points = np.zeros((len(measured), rule.in_channels), np.float32)
        width = min(points.shape[1], measured.shape[1])
        points[:, :width] = measured[:, :width]
        yield Sweep(points, f'generated sweep {index}')
