"""From points to decorated pillars and to the map, as lidar_centerpoint computes them. Needs numpy only.

Differs from the node in: points stay in their order (the node rotates a fixed permutation by a random number
each frame, so which 32 points of a full pillar survive is not fixed there).

Source: autoware_universe 5e12a711, autoware_lidar_centerpoint, lib/preprocess/{voxel_generator.cpp,
preprocess_kernel.cu}, lib/network/scatter_kernel.cu, include/.../centerpoint_config.hpp (formulas, no code).

Glossary: P points, n pillars, F values of a decorated point, H, W cells of the map along y and x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.autoware.centerpoint_rules import CHANNELS, POINTS
from mmdeploy_ext.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.consumers.autoware.settings import CenterPointSettings

CAPACITY = 2_000_000
"""Points of all sweeps: cloud_capacity."""


def densified(
    sweeps: Sequence[tuple[np.ndarray, float, np.ndarray]], past: int = 1, capacity: int = CAPACITY
) -> np.ndarray:
    """Return points (P, 4 or 5) float32 of sweeps in the frame of the newest one, with time lags in seconds.

    Args:
        sweeps: at least one, newest first: points (P, 3 or 4), x, y, z in metres in the frame of the vehicle
            at that time, and the intensity 0..255; time stamp in seconds; pose (4, 4) from the vehicle to the
            map.
        past: num_past_frames, the largest number of older sweeps that are used, 0 or more.
        capacity: points of all sweeps; an older sweep that would go beyond it ends the list.

    Raises:
        DataError: the newest sweep alone has more points.
    """
    if len(sweeps[0][0]) > capacity:
        raise DataError(f'points: the newest sweep has {len(sweeps[0][0])}, expected at most {capacity}')
    newest_s, to_current = sweeps[0][1], np.linalg.inv(np.asarray(sweeps[0][2], np.float64))
    moved, count = [], 0
    for points, stamp_s, pose in sweeps[: past + 1]:
        count += len(points)
        if count > capacity:
            break
        motion = (to_current @ np.asarray(pose, np.float64)).astype(np.float32)
        xyz = points[:, :3].astype(np.float32) @ motion[:3, :3].T + motion[:3, 3]
        lag = np.full((len(points), 1), newest_s - stamp_s, np.float32)
        moved.append(np.concatenate([xyz, points[:, 3:].astype(np.float32), lag], axis=1))
    return np.concatenate(moved)


def decorated(points: np.ndarray, settings: CenterPointSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's input of one cloud, and the pillars' cells.

    Args:
        points: (P, 4 or 5) float32 as `densified` returns them. Those outside the range or at an upper end of
            it, and of each pillar those after its first 32, are left out.
        settings: the grid, sizes and limits that the manifest states.

    Returns:
        (n, 32, F) float32, zeros after a pillar's last point, and (n, 2) int64 cells y, x of the pillars,
        which are sorted by falling x, then by rising y; the first `settings.pillars` at most. The F values
        are those of the point, its offset x, y, z from the mean of its pillar's points, those left out not
        counted, and that from the pillar's centre: x, y, and z unless F is 9.
    """
    low, high = np.float32(settings.cloud[:3]), np.float32(settings.cloud[3:])
    points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]
    columns, rows = settings.grid
    size = np.float32(settings.voxel)
    x, y = np.floor((points[:, :2] - low[:2]) / size[:2]).astype(np.int64).T
    x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
    order = (columns - 1 - x) * rows + y
    keys, pillar, counts = np.unique(order, return_inverse=True, return_counts=True)
    by_pillar = np.argsort(pillar, kind='stable')
    rank = np.empty(len(points), np.int64)
    rank[by_pillar] = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    fits = (rank < POINTS) & (pillar < settings.pillars)
    keys, counts = keys[: settings.pillars], counts[: settings.pillars].clip(max=POINTS)
    pillars = np.zeros((len(keys), POINTS, points.shape[1]), np.float32)
    pillars[pillar[fits], rank[fits]] = points[fits]
    cells = np.stack([keys % rows, columns - 1 - keys // rows], axis=1)
    return _features(pillars, counts, cells, low, size, settings.features), cells


def _features(
    pillars: np.ndarray, counts: np.ndarray, cells: np.ndarray, low: np.ndarray, size: np.ndarray, width: int
) -> np.ndarray:
    """Return each point with its offsets from the mean of its pillar's points and from the pillar's centre.

    Args:
        pillars: (n, 32, 4 or 5) points, zeros after the last.
        counts: (n,) points of each pillar.
        cells: (n, 2) y, x.
        low: (3,) lower corner of the range, metres.
        size: (3,) of a voxel, metres.
        width: F.
    """
    xyz = pillars[..., :3]
    mean = xyz.sum(1, keepdims=True, dtype=np.float32) / counts[:, None, None].astype(np.float32)
    index = np.concatenate([cells[:, ::-1], np.zeros((len(cells), 1), np.int64)], axis=1).astype(np.float32)
    centre = size / np.float32(2) + index * size + low
    axes = 2 if width == 9 else 3
    features = np.concatenate([pillars, xyz - mean, (xyz - centre[:, None])[..., :axes]], axis=2)
    is_point = np.arange(pillars.shape[1]) < counts[:, None]
    return np.where(is_point[..., None], features, np.float32(0))


def scattered(features: np.ndarray, cells: np.ndarray, settings: CenterPointSettings) -> np.ndarray:
    """Return the map (1, 32, H, W) float32 of features (n, 1, 32) of pillars in the cells (n, 2) y, x.

    H and W are those of the settings' grid; cells without a pillar are 0.
    """
    columns, rows = settings.grid
    canvas = np.zeros((1, CHANNELS, rows, columns), np.float32)
    canvas[0, :, cells[:, 0], cells[:, 1]] = features[:, 0]
    return canvas
