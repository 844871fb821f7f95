"""LIDAR_TOP sweeps of the generated drive: 32 beams around, ray-cast against the ground and every box."""

import numpy as np

from mmdeploy_ext.synthetic.nuscenes_render import boxes_in, half_sizes, ray_box
from mmdeploy_ext.synthetic.nuscenes_rig import Sensor, pose_matrix
from mmdeploy_ext.synthetic.nuscenes_world import Thing, World

BEAMS = 32
ELEVATIONS_DEG = (-30.67, 10.67)
AZIMUTHS = 360
MAX_RANGE_M = 70.0
RANGE_NOISE_M = 0.01


def _rays() -> np.ndarray:
    """Give unit directions (BEAMS * AZIMUTHS, 3) in the LiDAR frame, ring by ring from below."""
    elevation = np.deg2rad(np.linspace(*ELEVATIONS_DEG, BEAMS))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, AZIMUTHS, endpoint=False)[None]
    rays = [
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.sin(elevation) * np.ones_like(azimuth),
    ]
    return np.stack(rays, axis=-1).reshape(-1, 3)


def sweep(
    sensor: Sensor, world: World, things: list[Thing], time_s: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Measure one revolution, as if taken at one instant; the ego is where it is at `time_s`.

    Returned is (n, 5) float32 x y z in the LiDAR frame, m; intensity 0..255; ring 0..31, as in nuScenes'
    .pcd.bin. And per object how many of the points it returned.
    """
    xy, yaw = world.drive.pose(time_s)
    to_global = pose_matrix(xy, float(yaw)) @ sensor.to_ego
    rays = _rays()
    down = rays @ to_global[2, :3]
    with np.errstate(divide='ignore'):
        distance = np.where(down < 0, -to_global[2, 3] / down, np.inf)
    nearest = np.full(len(rays), -1)
    for index, (thing, box) in enumerate(zip(things, boxes_in(to_global, things, time_s), strict=True)):
        hit, enter, _ = ray_box(-box[:3, 3] @ box[:3, :3], rays @ box[:3, :3], half_sizes(thing))
        hit &= enter < distance
        distance[hit], nearest[hit] = enter[hit], index
    kept = distance < MAX_RANGE_M
    counts = np.bincount(nearest[kept & (nearest >= 0)], minlength=len(things))
    reflectance = np.array([12.0] + [25.0 + 6 * thing.label for thing in things])[nearest[kept] + 1]
    reach = distance[kept] + rng.normal(0, RANGE_NOISE_M, kept.sum())
    ring = np.repeat(np.arange(BEAMS), AZIMUTHS)[kept]
    intensity = np.clip(reflectance + rng.normal(0, 3, kept.sum()), 0, 255)
    points = np.concatenate([rays[kept] * reach[:, None], intensity[:, None], ring[:, None]], axis=1)
    return points.astype(np.float32), counts
