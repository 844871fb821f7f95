"""Tensors as arrays: types that numpy lacks."""

import numpy as np
import pytest
import torch

from mmdeploy_ext.core.arrays import to_array


@pytest.mark.filterwarnings('ignore:ComplexHalf support is experimental')
def test_half_complex_numbers_keep_their_imaginary_part():
    array = to_array(torch.tensor([1 + 2j], dtype=torch.complex32))
    assert array.dtype == np.complex64
    assert array.tolist() == [1 + 2j]


def test_bfloat16_becomes_float32():
    array = to_array(torch.tensor([1.5, float('nan')], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, np.nan])
