"""Point clouds read from files and checked. Needs numpy only.

P points of D values: x, y, z in metres, LiDAR frame, then the data set's, such as intensity and age in
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.preprocess.points import check_points as checked

# Point clouds of PCL (.pcd, version 0.7).
#
# Format: https://pointclouds.org/documentation/tutorials/pcd_file_format.html


LONGEST_HEADER = 65536
"""Bytes."""
FIRST = ('x', 'y', 'z', 'intensity')
PADDING = '_'
"""Name of a field without a meaning."""


def read_pcd(content: bytes, width: int, name: str) -> np.ndarray:
    """Points (P, width) float32 of a file's bytes: x, y, z, intensity, then the order of the file.

    Points without a return, which are NaN, are left out.

    DataError, which begins with `name`: damaged, or without `width` fields.
    """
    try:
        header, rows = _header(content)
        fields = _fields(header)
        count = _count(header)
        form = header['DATA'][0]
        columns = _read(rows, fields, count, form)
    except (LookupError, ValueError, TypeError) as error:
        raise DataError(f'{name}: is damaged or not a .pcd of version 0.7 ({error})') from error
    first = FIRST if 'intensity' in columns else FIRST[:3]
    names = [*first, *(field for field in columns if field not in (*first, PADDING))]
    if len(names) < width or not set(first) <= set(columns):
        raise DataError(
            f'{name}: has the fields {", ".join(columns)}; the model expects points of {width} values, '
            f'x, y, z first'
        )
    points = np.stack([columns[field].astype(np.float32) for field in names[:width]], axis=1)
    return points[~np.isnan(points[:, :3]).any(1)]


def _header(content: bytes) -> tuple[dict[str, list[str]], bytes]:
    header: dict[str, list[str]] = {}
    place = 0
    while 'DATA' not in header:
        end = content.find(b'\n', place, LONGEST_HEADER)
        if end < 0:
            raise ValueError(f'its header has no DATA in {LONGEST_HEADER} bytes')
        words = content[place:end].decode('ascii').split()
        if words and not words[0].startswith('#'):
            header[words[0]] = words[1:]
        place = end + 1
    return header, content[place:]


def _count(header: dict[str, list[str]]) -> int:
    count, width, height = (int(header[key][0]) for key in ('POINTS', 'WIDTH', 'HEIGHT'))
    if count != width * height:
        raise ValueError(f'POINTS is {count}, WIDTH x HEIGHT {width} x {height}')
    return count


def _fields(header: dict[str, list[str]]) -> list[tuple[str, str, int]]:
    """Name, type of numpy and number of values of each field."""
    names = header['FIELDS']
    kinds = {'F': 'f', 'I': 'i', 'U': 'u'}
    dtypes = [f'<{kinds[kind]}{size}' for kind, size in zip(header['TYPE'], header['SIZE'], strict=True)]
    counts = [int(count) for count in header.get('COUNT', ['1'] * len(names))]
    return list(zip(names, dtypes, counts, strict=True))


def _read(rows: bytes, fields: list[tuple[str, str, int]], count: int, form: str) -> dict[str, np.ndarray]:
    """First value (P,) of each field."""
    if form == 'ascii':
        table = np.array(rows.split(), np.float64).reshape(count, sum(size for *_, size in fields))
        starts = np.cumsum([0, *(size for *_, size in fields)])
        return {field: table[:, start] for (field, *_), start in zip(fields, starts, strict=False)}
    record = np.dtype([(str(place), dtype, (size,)) for place, (_, dtype, size) in enumerate(fields)])
    if form == 'binary':
        _check_size(rows, count * record.itemsize)
        table = np.frombuffer(rows, record, count)
        return {field: table[str(place)][:, 0] for place, (field, *_) in enumerate(fields)}
    if form != 'binary_compressed':
        raise ValueError(f'DATA {form}')
    compressed, size = (int(value) for value in np.frombuffer(rows, '<u4', 2))
    _check_size(rows[8:], compressed)
    content, columns, start = _unpack(rows[8:]), {}, 0
    for expected in (size, count * record.itemsize):
        _check_size(content, expected)
    for field, dtype, values in fields:
        columns[field] = np.frombuffer(content, dtype, count * values, start)[::values]
        start += count * values * np.dtype(dtype).itemsize
    return columns


def _check_size(content: bytes, size_bytes: int) -> None:
    if len(content) != size_bytes:
        raise ValueError(f'its points have {len(content)} bytes, expected {size_bytes} by its header')


def _unpack(packed: bytes) -> bytes:
    """Content of an LZF stream: a run of bytes, or a copy of earlier ones."""
    content, place = bytearray(), 0
    while place < len(packed):
        control = packed[place]
        place += 1
        if control < 32:
            content += packed[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[place]
            place += 1
        start = len(content) - ((control & 31) << 8) - packed[place] - 1
        place += 1
        if start < 0:
            raise ValueError('the compressed data refer to bytes before the first one')
        for index in range(start, start + length + 2):  # a copy may reach into itself
            content.append(content[index])
    return bytes(content)


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
