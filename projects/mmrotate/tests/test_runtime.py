"""Sizes and ratios that results are made with where a program feeds them as the contracts allow."""

import numpy as np

from mm2onnx_mmrotate.runtime import sizes_of

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
