"""Tensors as arrays: types that numpy lacks."""

import numpy as np
import torch

from mmdeploy_ext.core.arrays import to_array


def test_bfloat16_becomes_float32():
    array = to_array(torch.tensor([1.5, float('nan')], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, np.nan])
