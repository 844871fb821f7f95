"""Point clouds of PCL (.pcd, version 0.7). Needs numpy only.

Format: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

from __future__ import annotations

import numpy as np

from mmdeploy_ext.base.errors import DataError

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
