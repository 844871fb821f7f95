"""Point clouds read from files and checked. Needs numpy only.

P points of D values: x, y, z in metres, LiDAR frame, then the data set's, such as intensity and age in
seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.pcd import read_pcd
from mmdeploy_ext.runtime.preprocess.points import check_points as checked

if TYPE_CHECKING:
    from collections.abc import Sequence

SWEEP_SUFFIXES = ('.bin', '.npy', '.pcd')
WIDTHS = range(3, 8)
MIN_VALUES = 1000
LARGEST_VALUE = 1e5
"""Largest value: metres, 16-bit intensities, ages in seconds."""
ALIKE = 1.5
"""Columns of mixed values differ less in spread than this factor."""
UNLIKE = 3.0
"""Columns of a real sweep differ more in spread than this factor."""


def read_points(path: str | Path, width: int) -> np.ndarray:
    """Sweep (P, width) float32 of a file of raw float32, or of numpy's (.npy) or PCL's (.pcd)."""
    suffix = Path(path).suffix.lower()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); expected a sweep of float32') from error
    if suffix == '.npy':
        points = load_arrays(path, 'points').get('points', np.zeros(0))
    if suffix == '.pcd':
        points = read_pcd(content, width, str(path))
    if suffix not in ('.npy', '.pcd'):
        return _raw_points(content, path, width)
    points = check_points(points, width, str(path))
    check_plausible(points, path)
    return points


def _raw_points(content: bytes, path: str | Path, width: int) -> np.ndarray:
    if len(content) % (4 * width):
        raise DataError(
            f'{path}: has {len(content)} bytes, expected a multiple of {4 * width}: the model expects points '
            f'of {width} float32 values'
        )
    values = np.frombuffer(content, '<f4').copy()  # a buffer's view cannot be written to, torch warns of it
    points, advice = values.reshape(-1, width), 'repair the file, or remove it'
    if len(content) % (8 * width) == 0 and (np.abs(np.frombuffer(content, '<f8')) <= LARGEST_VALUE).all():
        advice = 'the file looks like float64: save it as float32'
    check_plausible(points, path, advice)
    if likelier := _likelier_width(values, width):
        raise DataError(
            f'{path}: its {len(values)} values look like points of {likelier} values, but the model '
            f'expects points of {width}: add or remove columns'
        )
    return check_points(points, width, str(path))


def check_plausible(
    points: np.ndarray, path: str | Path, advice: str = 'repair the file, or remove it'
) -> None:
    """Raise DataError for points (P, D) with NaN, infinity or values beyond +-`LARGEST_VALUE`."""
    rows, columns = np.nonzero(~(np.abs(points) <= LARGEST_VALUE))
    if not len(rows):
        return
    row, column = int(rows[0]), int(columns[0])
    title = f'{"xyz"[column]}, in metres,' if column < 3 else f'column {column}'
    several = f' ({len(rows)} values of the file)' if len(rows) > 1 else ''
    raise DataError(
        f'{path}: {title} of point {row} is {points[row, column]:g}{several}, expected a number of at most '
        f'{LARGEST_VALUE:g}: {advice}'
    )


def _likelier_width(values: np.ndarray, width: int) -> int:
    """x and z spread differently; with a wrong width every column mixes all values and spreads alike."""
    if len(values) < MIN_VALUES or not np.isfinite(values).all() or _contrast(values, width) > ALIKE:
        return 0
    widths = [candidate for candidate in sorted({width, *WIDTHS}) if len(values) % candidate == 0]
    contrasts = {candidate: _contrast(values, candidate) for candidate in widths}
    largest = max(contrasts.values())
    best = next(candidate for candidate in widths if contrasts[candidate] > largest / 2)  # 3 before 6
    return best if best != width and largest > UNLIKE else 0


def _contrast(values: np.ndarray, width: int) -> float:
    spreads = values.reshape(-1, width).astype(np.float64).std(axis=0)
    spreads = spreads[spreads > 0]
    return float(spreads.max() / spreads.min()) if len(spreads) > 1 else 1.0


def check_points(points: np.ndarray, width: int, name: str = '') -> np.ndarray:
    """Contiguous points (P, width) float32."""
    prefix = f'{name}: ' if name else ''
    try:
        points = checked(points, width)
    except DataError as error:
        raise DataError(f'{prefix}{error}') from error
    if not len(points):
        raise DataError(f'{prefix}points: the sweep is empty, expected at least one point')
    return points


def check_in_range(points: np.ndarray, point_cloud_range: Sequence[float], name: str = '') -> None:
    """Raise DataError if no point (P, 3 or more) is in [low, high) x, y, z, metres."""
    low, high = np.float32(point_cloud_range[:3]), np.float32(point_cloud_range[3:])
    if not ((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1).any():
        title = f'{name}: points' if name else 'points'
        lower, upper = points[:, :3].min(0).round(1).tolist(), points[:, :3].max(0).round(1).tolist()
        raise DataError(
            f'{title}: none of {len(points)} is in the range {list(map(float, point_cloud_range))} of the '
            f'model; they reach from {lower} to {upper}: is this the LiDAR frame, in metres?'
        )
