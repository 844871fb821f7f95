"""Voxels from .npz files: names and orders of the field, and files that are none."""

import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.sweeps import read_voxels

FEATURES = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
COORDINATES = np.array([[0, 1, 2, 3], [0, 7, 8, 9], [0, 0, 5, 0]], np.int32)
TURNED = COORDINATES[:, [0, 3, 2, 1]]


@pytest.mark.parametrize(
    ('names', 'coordinates'),
    [
        (('features', 'coordinates'), COORDINATES),
        (('features', 'coors'), COORDINATES),
        (('features_f16', 'coords_bxyz_i16'), COORDINATES),
        (('features', 'coors_bzyx'), TURNED),
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
    ('arrays', 'said'),
    [
        (dict(features=FEATURES), 'no coordinates'),
        (dict(features=FEATURES, coors=COORDINATES, coordinates=COORDINATES), 'coors and coordinates'),
        (dict(features=FEATURES[:2], coors=COORDINATES), r'\(2, 5\)'),
        (dict(features=FEATURES, coors=COORDINATES[:, 1:]), r'\(3, 3\)'),
        (dict(features=FEATURES, coors=COORDINATES.astype(np.float32)), 'float32'),
        (dict(features=FEATURES, coors=-COORDINATES), '-9 to 0'),
    ],
)
def test_arrays_that_are_no_voxels_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / 'v.npz', **arrays)
    with pytest.raises(DataError, match=rf'v\.npz: .*{said}'):
        read_voxels(tmp_path / 'v.npz', 'xyz')
    (tmp_path / 'v.npz').write_bytes(b'PK')
    with pytest.raises(DataError, match=r'v\.npz: cannot be read'):
        read_voxels(tmp_path / 'v.npz', 'xyz')
