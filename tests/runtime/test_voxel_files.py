"""Voxels from .npz files: names and orders of the field, and files that are none."""

import numpy as np
import pytest

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.voxel_files import read_voxels

FEATURES = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
COORDINATES = np.array([[0, 1, 2, 3], [0, 7, 8, 9], [0, 0, 5, 0]], np.int32)
TURNED = COORDINATES[:, [0, 3, 2, 1]]


@pytest.mark.parametrize(
    ('names', 'coordinates'),
    [
        (('features', 'coordinates'), COORDINATES),
        (('features', 'coors'), COORDINATES),
        (('features', 'coors_bxyz'), COORDINATES),
        (('features_f16', 'coords_bxyz_i16'), COORDINATES),
        (('features', 'coors_bzyx'), TURNED),
        (('features_f32', 'coordinates_bzyx_i32'), TURNED),
    ],
)
def test_names_of_the_field_and_their_order(tmp_path, names, coordinates):
    kept = FEATURES.astype(np.float16 if names[0].endswith('f16') else np.float32)
    stored = coordinates.astype(np.int16 if names[1].endswith('i16') else np.int64)
    more = dict(spatial_shape_xyz=np.array([9, 9, 9]), batch_size=np.array(1))
    np.savez(tmp_path / 'v.npz', **{names[0]: kept, names[1]: stored}, **more)
    features, found = read_voxels(tmp_path / 'v.npz', 'xyz')
    assert features.dtype == np.float32 and np.array_equal(features, kept)
    assert found.dtype == np.int32 and np.array_equal(found, COORDINATES)
    says_order = 'xyz' in names[1] or 'zyx' in names[1]
    assert np.array_equal(read_voxels(tmp_path / 'v.npz', 'zyx')[1], TURNED if says_order else COORDINATES)


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        (dict(features=FEATURES), 'has no coordinates'),
        (dict(coors=COORDINATES), 'has no features'),
        (dict(features=FEATURES, coors=COORDINATES, coords_bzyx=TURNED), 'under coors and coords_bzyx'),
        (dict(features=FEATURES, coordinates=COORDINATES[:2]), r'\(3, 5\) and coordinates int32 \(2, 4\)'),
        (dict(features=FEATURES, coordinates=COORDINATES[:, :3]), r'coordinates int32 \(3, 3\)'),
        (dict(features=FEATURES, coordinates=COORDINATES * 1.0), 'coordinates float64'),
        (dict(features=FEATURES, coordinates=COORDINATES + 2**32), 'coordinates are 4294967296 to'),
        (dict(features=FEATURES, coordinates=COORDINATES - 1), 'coordinates are -1 to 8'),
        (dict(features=FEATURES.astype('U9'), coordinates=COORDINATES), 'features <U9'),
    ],
)
def test_files_that_are_no_voxels(tmp_path, arrays, message):
    np.savez(tmp_path / 'v.npz', **arrays)
    with pytest.raises(DataError, match=message):
        read_voxels(tmp_path / 'v.npz', 'xyz')


@pytest.mark.parametrize('content', [b'', b'nonsense', b'PK\x03\x04 cut', None])
def test_damaged_and_missing_files(tmp_path, content):
    if content is not None:
        (tmp_path / 'v.npz').write_bytes(content)
    with pytest.raises(DataError, match='cannot be read'):
        read_voxels(tmp_path / 'v.npz', 'xyz')


def test_an_array_alone_is_no_archive(tmp_path):
    np.save(tmp_path / 'v.npy', FEATURES)
    (tmp_path / 'v.npy').rename(tmp_path / 'v.npz')
    with pytest.raises(DataError, match='cannot be read'):
        read_voxels(tmp_path / 'v.npz', 'xyz')
