"""Sweeps of files of numpy and PCL have the points of the raw file."""

import itertools
import struct

import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.points import read_points

HEADER = """# .PCD v0.7
VERSION 0.7
FIELDS x y z _ ring intensity
SIZE 4 4 4 1 2 8
TYPE F F F U U F
COUNT 1 1 1 4 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA {form}
"""
RECORD = np.dtype(
    [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('_', 'u1', 4), ('ring', '<u2'), ('intensity', '<f8')]
)
COUNT = 200


@pytest.fixture(scope='module')
def table():
    rng, table = np.random.default_rng(0), np.zeros(COUNT, RECORD)
    for field in 'xyz':
        table[field] = rng.uniform(-50, 50, COUNT).round(2)
    table['ring'], table['intensity'] = rng.integers(0, 32, COUNT), rng.uniform(0, 1, COUNT).round(3)
    return table


def packed(content):
    """LZF: single bytes, and copies of a byte that follows itself."""
    result = bytearray()
    for byte, group in itertools.groupby(content):
        count = len(list(group)) - 1
        copies = count if 9 <= count <= 200 else 0
        result += bytes([0, byte]) * (1 + count - copies)
        result += bytes([7 << 5, copies - 9, 0]) if copies else b''
    return bytes(result)


def write_pcd(path, table, form):
    header = HEADER.format(count=len(table), form=form).encode()
    if form == 'ascii':
        rows = (' '.join(map(str, np.hstack(list(row)))) for row in table)
        content = '\n'.join(rows).encode()
    elif form == 'binary':
        content = table.tobytes()
    else:
        columns = b''.join(table[field].tobytes() for field in RECORD.names)
        content = packed(columns)
        content = struct.pack('<II', len(content), len(columns)) + content
    path.write_bytes(header + content)


@pytest.mark.parametrize('form', ['ascii', 'binary', 'binary_compressed'])
def test_a_pcd_gives_its_fields_by_name_without_padding_and_invalid_points(form, table, tmp_path):
    broken = table.copy()
    broken['x'][3] = np.nan
    write_pcd(tmp_path / 'a.pcd', broken, form)
    wanted = np.stack([np.delete(table, 3)[field] for field in ('x', 'y', 'z', 'intensity', 'ring')], 1)
    for width in (4, 5):
        found = read_points(tmp_path / 'a.pcd', width)
        np.testing.assert_array_equal(found, wanted[:, :width].astype(np.float32))
    with pytest.raises(DataError, match='ring'):
        read_points(tmp_path / 'a.pcd', 6)
    content = (tmp_path / 'a.pcd').read_bytes()
    for part in (50, len(content) - 20):
        (tmp_path / 'cut.pcd').write_bytes(content[:part])
        with pytest.raises(DataError, match=r'cut\.pcd'):
            read_points(tmp_path / 'cut.pcd', 4)


@pytest.mark.parametrize('form', ['ascii', 'binary', 'binary_compressed'])
@pytest.mark.parametrize('key', ['POINTS', 'WIDTH', 'HEIGHT', 'POINTS WIDTH'])
def test_a_pcd_of_another_size_than_its_header_is_refused(form, key, table, tmp_path):
    write_pcd(tmp_path / 'a.pcd', table, form)
    content = (tmp_path / 'a.pcd').read_bytes()
    for name in key.split():
        number, other = (1, 2) if name == 'HEIGHT' else (COUNT, COUNT - 1)
        assert f'{name} {number}\n'.encode() in content
        content = content.replace(f'{name} {number}\n'.encode(), f'{name} {other}\n'.encode())
    (tmp_path / 'a.pcd').write_bytes(content)
    with pytest.raises(DataError, match=r'a\.pcd'):
        read_points(tmp_path / 'a.pcd', 4)


def test_a_pcd_without_data_is_refused_after_the_longest_header(tmp_path):
    (tmp_path / 'a.pcd').write_bytes(b'# a\n' * 30_000 + b'DATA ascii\n')
    with pytest.raises(DataError, match='DATA'):
        read_points(tmp_path / 'a.pcd', 4)


def test_an_npy_gives_its_points_and_another_width_or_objects_are_refused(tmp_path):
    points = np.random.default_rng(0).uniform(-50, 50, (100, 4))
    np.save(tmp_path / 'a.npy', points)
    np.testing.assert_array_equal(read_points(tmp_path / 'a.npy', 4), points.astype(np.float32))
    with pytest.raises(DataError, match=r'a\.npy'):
        read_points(tmp_path / 'a.npy', 5)
    np.save(tmp_path / 'objects.npy', np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r'objects\.npy'):
        read_points(tmp_path / 'objects.npy', 4)


def test_a_raw_file_of_another_width_or_cut_short_is_refused(tmp_path):
    (tmp_path / 'a.bin').write_bytes(np.zeros(21, np.float32).tobytes())
    with pytest.raises(DataError, match='84 bytes'):
        read_points(tmp_path / 'a.bin', 5)


def test_points_that_look_like_another_width_are_refused(tmp_path):
    rng, spreads = np.random.default_rng(0), [50, 50, 2, 0.5, 0.01]
    (rng.uniform(-1, 1, (2000, 5)) * spreads).astype(np.float32).tofile(tmp_path / 'a.bin')
    assert read_points(tmp_path / 'a.bin', 5).shape == (2000, 5)
    with pytest.raises(DataError, match='points of 5 values'):
        read_points(tmp_path / 'a.bin', 4)
