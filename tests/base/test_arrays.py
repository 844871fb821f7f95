"""Tensors as arrays: types that numpy lacks."""

import os

import numpy as np
import pytest
import torch

from mmdeploy_ext.base.arrays import ArrayDistance, load_arrays, to_array
from mmdeploy_ext.base.errors import DataError


def test_bfloat16_becomes_float32():
    array = to_array(torch.tensor([1.5, float('nan')], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, np.nan])


def test_infinities_missing_numbers_and_long_integers_have_a_distance():
    found = ArrayDistance(np.array([np.inf, np.nan, 3]), np.array([np.inf, np.nan, 2]))
    assert (found.max_abs, found.scale) == (1, 2)
    assert ArrayDistance(np.array([-np.inf]), np.array([np.inf])).max_abs == np.inf
    assert ArrayDistance(np.array([2**60 + 1]), np.array([2**60])).max_abs == 1


def test_damaged_archives_and_pipes_are_refused_by_name(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, a=np.arange(100))
    assert np.array_equal(load_arrays(path)['a'], np.arange(100))
    content = path.read_bytes()
    place = content.index(np.arange(100).tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    for damaged in (flipped, content[:50], content.replace(b"'descr'", b"'desc\xff'"), b'', b'[]'):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r'a\.npz'):
            load_arrays(path)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(DataError, match='pipe'):
        load_arrays(tmp_path / 'pipe')
