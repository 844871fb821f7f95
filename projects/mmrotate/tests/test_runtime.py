"""Sizes and ratios that results are made with where a program feeds them as the contracts allow."""

import numpy as np
import pytest

from mm2onnx_mmrotate.deltas import Delta
from mm2onnx_mmrotate.runtime import sizes_of
from mmdeploy_ext.base.errors import ModelFileError

INPUT = np.zeros((2, 3, 64, 96), np.float32)


def test_a_size_of_zero_is_that_of_the_input_and_one_row_is_for_all_images():
    for feeds in ({}, dict(img_shape=np.zeros((1, 2), np.float32)), dict(img_shape=np.zeros((2, 2)))):
        content, ratios = sizes_of(dict(feeds, input=INPUT), 2)
        assert content.tolist() == [[64, 96]] * 2 and ratios.tolist() == [[1] * 4] * 2
    feeds = dict(
        input=INPUT, img_shape=np.float32([[60, 0], [64, 90]]), scale_factor=np.float32([[2, 2, 2, 2]])
    )
    content, ratios = sizes_of(feeds, 2)
    assert content.tolist() == [[60, 96], [64, 90]] and ratios.tolist() == [[2] * 4] * 2


def test_settings_that_the_decoding_reads_must_be_there():
    coder = dict(means=[0.0] * 5, stds=[1.0] * 5, wh_ratio_clip=0.016, norm_factor=0.0, edge_swap=False)
    coder.update(proj_xy=False, ctr_clamp=0.0, version='le90', type='delta')
    angles = dict(width=4.0, range=180.0, offset=90.0, sigmoid=True)
    Delta.from_json(dict(coder, angles=angles, replaced=True))
    with pytest.raises(ModelFileError, match='replaced'):
        Delta.from_json(dict(coder, angles=angles))
    del coder['ctr_clamp']
    with pytest.raises(ModelFileError, match="has no 'ctr_clamp'"):
        Delta.from_json(coder)
