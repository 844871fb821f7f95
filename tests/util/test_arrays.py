"""Tensors as arrays: types that numpy lacks."""

import numpy as np
import torch

from mmdeploy_ext.util.arrays import ArrayDistance, to_array


def test_bfloat16_becomes_float32():
    array = to_array(torch.tensor([1.5, float('nan')], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, np.nan])


def test_infinities_missing_numbers_and_long_integers_have_a_distance():
    found = ArrayDistance(np.array([np.inf, np.nan, 3]), np.array([np.inf, np.nan, 2]))
    assert (found.max_abs, found.scale) == (1, 2)
    assert ArrayDistance(np.array([-np.inf]), np.array([np.inf])).max_abs == np.inf
    assert ArrayDistance(np.array([2**60 + 1]), np.array([2**60])).max_abs == 1
