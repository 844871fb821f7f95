"""Point clouds as models take them, read from files; refused by name where they cannot be. Needs numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_points(path: str | Path, width: int) -> np.ndarray:
    """Read a sweep of raw float32 (nuScenes' `.pcd.bin`, KITTI's `.bin`).

    Args:
        path: of the file.
        width: values per point.

    Returns:
        (P, width) float32.

    Raises:
        DataError: no such file, or a size that is no multiple of a point.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); expected a sweep of float32') from error
    if len(content) % (4 * width):
        raise DataError(
            f'{path}: has {len(content)} bytes, expected a multiple of {4 * width}: the model takes points '
            f'of {width} float32 values'
        )
    return check_points(np.frombuffer(content, '<f4').reshape(-1, width), width, str(path))


def check_points(points: np.ndarray, width: int, name: str = '') -> np.ndarray:
    """Return points as (P, width) float32, contiguous.

    Raises:
        DataError: another shape or kind, NaN, or no point at all.
    """
    where = f'{name}: points' if name else 'points'
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != width:
        raise DataError(
            f'{where}: got shape {points.shape}, expected (P, {width}): the model was trained on points of '
            f'{width} values'
        )
    if points.dtype.kind not in 'fiu':
        raise DataError(f'{where}: got {points.dtype}, expected float32')
    if not len(points):
        raise DataError(f'{where}: the sweep is empty, expected at least one point')
    points = np.ascontiguousarray(points, np.float32)
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise DataError(f'{where}: {bad} of {len(points)} are NaN or infinite; drop them before')
    return points


def check_in_range(points: np.ndarray, point_cloud_range: Sequence[float], name: str = '') -> None:
    """Refuse a sweep none of whose points is in range.

    Args:
        points: (P, 3 or more).
        point_cloud_range: lower x, y, z, then upper, in metres.
        name: of the sweep.

    Raises:
        DataError: the message says where the points are.
    """
    low, high = np.float32(point_cloud_range[:3]), np.float32(point_cloud_range[3:])
    if not ((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1).any():
        where = f'{name}: points' if name else 'points'
        least, most = points[:, :3].min(0).round(1).tolist(), points[:, :3].max(0).round(1).tolist()
        raise DataError(
            f'{where}: none of {len(points)} is in the range {list(map(float, point_cloud_range))} of the '
            f'model; they reach from {least} to {most}: is this the LiDAR frame, in metres?'
        )
