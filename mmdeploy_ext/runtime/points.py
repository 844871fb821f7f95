"""Point clouds as models take them, read from files and checked. Needs numpy only.

A sweep is one revolution of a LiDAR. Glossary: P points, D values of a point, of which the first three are x,
y, z in metres in the LiDAR frame; further ones, such as the intensity and the age in seconds, are as the
data set has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.preprocess.points import check_points as checked

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTHS = range(3, 8)
"""Numbers of values per point that sweeps may have."""
MIN_VALUES = 1000
"""Number of values from which on the spread of columns tells how many a point has."""
LARGEST_VALUE = 1e5
"""No value of a point is larger: neither metres, nor intensities of up to 16 bits, nor ages in seconds."""
MAX_BYTES = 1 << 28
"""Largest size of a sweep's file: 13 million points of five values."""
ALIKE = 1.5
"""Columns that are mixtures of all values differ less in their spread than by this factor."""
UNLIKE = 3.0
"""The columns of a real sweep differ more in their spread than by this factor."""


def read_points(path: str | Path, width: int) -> np.ndarray:
    """Return a sweep (P, width) float32 of a file of raw float32 (nuScenes' `.pcd.bin`, KITTI's `.bin`).

    It has all columns of the file, at least one point, and is a new array that may be changed.

    Args:
        path: path of the file.
        width: number of values per point in the file (`load_dim` of a config), above 0; of these a model may
            take only some.

    Raises:
        DataError: the file is not there, empty or larger than `MAX_BYTES`; its size
            is not a multiple of a point; a value is none that a sensor measures; or the spread of the columns
            shows that points have another number of values, one of `WIDTHS`.
    """
    try:
        if (size_bytes := Path(path).stat().st_size) > MAX_BYTES:
            raise DataError(
                f'{path}: has {size_bytes} bytes, expected a sweep of at most {MAX_BYTES}; split it by time'
            )
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); expected a sweep of float32') from error
    if len(content) % (4 * width):
        raise DataError(
            f'{path}: has {len(content)} bytes, expected a multiple of {4 * width}: the model takes points '
            f'of {width} float32 values'
        )
    values = np.frombuffer(content, '<f4').copy()  # a buffer's view cannot be written to, torch warns of it
    points, advice = values.reshape(-1, width), 'repair the file, or remove it'
    if len(content) % (8 * width) == 0 and (np.abs(np.frombuffer(content, '<f8')) <= LARGEST_VALUE).all():
        advice = 'the file looks like float64: save it as float32'
    check_plausible(points, path, advice)
    if likelier := _likelier_width(values, width):
        raise DataError(
            f'{path}: its {len(values)} values are points of {likelier} values by their look, the model '
            f'takes points of {width}: add or leave out the columns that differ'
        )
    return check_points(points, width, str(path))


def check_plausible(
    points: np.ndarray, path: str | Path, advice: str = 'repair the file, or remove it'
) -> None:
    """Refuse points (P, D) of a file with a value that is NaN, infinite or beyond +-`LARGEST_VALUE`.

    Args:
        points: (P, D) of a floating-point type, x, y, z first; P may be 0.
        path: path of their file, for the message.
        advice: end of the message, which tells what to do.

    Raises:
        DataError: its message names the file `path`, row and column of the first such value, and their
            number, and ends with the advice.
    """
    rows, columns = np.nonzero(~(np.abs(points) <= LARGEST_VALUE))
    if not len(rows):
        return
    row, column = int(rows[0]), int(columns[0])
    title = f'{"xyz"[column]}, in metres,' if column < 3 else f'column {column}'
    several = f' ({len(rows)} values of the file cannot be)' if len(rows) > 1 else ''
    raise DataError(
        f'{path}: {title} of point {row} is {points[row, column]:g}{several}, expected a number of at most '
        f'{LARGEST_VALUE:g}: {advice}'
    )


def _likelier_width(values: np.ndarray, width: int) -> int:
    """Return the width that values have by their look, 0 if `width` may be right.

    x and z spread differently. With a wrong width every column holds a mixture of all, and all spread alike.
    """
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
    """Return points as a contiguous array (P, width) float32; the same one if it is that already.

    It is `preprocess.points.check_points`, and refuses a sweep without points, too, by its name. Any value
    that is finite as float32 passes, see `check_plausible`.

    Args:
        points: (P, width) of integers or floating-point numbers, also nested lists.
        width: number of values per point.
        name: name of the sweep, for messages; '' for none.

    Raises:
        DataError: another number of values per point, another shape, no numbers, values that are not
            finite, or no point at all.
    """
    prefix = f'{name}: ' if name else ''
    try:
        points = checked(points, width)
    except DataError as error:
        raise DataError(f'{prefix}{error}') from error
    if not len(points):
        raise DataError(f'{prefix}points: the sweep is empty, expected at least one point')
    return points


def check_in_range(points: np.ndarray, point_cloud_range: Sequence[float], name: str = '') -> None:
    """Refuse a sweep that has not a single point in the range of the model.

    Points outside are no error: a LiDAR sees farther than most models, and the voxels leave them out
    (`preprocess.points`).

    Args:
        points: (P, 3 or more) float32, x, y, z first, in metres in the LiDAR frame; P is not 0.
        point_cloud_range: low x, y, z, which belong to the range, and high x, y, z, which do not, m.
        name: name of the sweep, for messages; '' for none.

    Raises:
        DataError: no point is in range; the message has the extent of the points.
    """
    low, high = np.float32(point_cloud_range[:3]), np.float32(point_cloud_range[3:])
    if not ((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1).any():
        title = f'{name}: points' if name else 'points'
        lower, upper = points[:, :3].min(0).round(1).tolist(), points[:, :3].max(0).round(1).tolist()
        raise DataError(
            f'{title}: none of {len(points)} is in the range {list(map(float, point_cloud_range))} of the '
            f'model; they reach from {lower} to {upper}: is this the LiDAR frame, in metres?'
        )
