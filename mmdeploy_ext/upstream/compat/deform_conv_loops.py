"""A compiled loop of deformable convolutions: mmcv's CPU kernel, operation by operation, in float32.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/modulated_deform_conv.cpp`.
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import math

import numpy as np

from mmdeploy_ext.base.compiled import njit

ZERO, UNIT = np.float32(0), np.float32(1)


@njit(cache=True, nogil=True)
def columns_of(maps, offsets, shares, kernel_width, stride, padding, dilation):
    """Samples (C, K, h, w) float32 of the K points of a kernel; 0 beyond the maps.

    Args:
        maps: (C, H, W) float32.
        offsets: (G, K, 2, h, w) float32 y before x, in cells, of G groups of channels.
        shares: (G, K, h, w) float32, factors.
        kernel_width: columns of the kernel.
        stride: y, x.
        padding: y, x.
        dilation: y, x.
    """
    channels, height, width = maps.shape
    groups, points, rows, columns = shares.shape
    samples = np.zeros((channels, points, rows, columns), np.float32)
    for channel in range(channels):
        group = channel // (channels // groups)
        for point in range(points):
            start_y = (point // kernel_width) * dilation[0] - padding[0]
            start_x = (point % kernel_width) * dilation[1] - padding[1]
            for row in range(rows):
                for column in range(columns):
                    y = np.float32(row * stride[0] + start_y) + offsets[group, point, 0, row, column]
                    x = np.float32(column * stride[1] + start_x) + offsets[group, point, 1, row, column]
                    if not (-UNIT < y < height and -UNIT < x < width):
                        continue
                    low_y, low_x = np.float32(math.floor(y)), np.float32(math.floor(x))
                    top, left = int(low_y), int(low_x)
                    part_y, part_x = y - low_y, x - low_x
                    rest_y, rest_x = UNIT - part_y, UNIT - part_x
                    value = ZERO
                    if top >= 0 and left >= 0:
                        value += rest_y * rest_x * maps[channel, top, left]
                    if top >= 0 and left + 1 < width:
                        value += rest_y * part_x * maps[channel, top, left + 1]
                    if top + 1 < height and left >= 0:
                        value += part_y * rest_x * maps[channel, top + 1, left]
                    if top + 1 < height and left + 1 < width:
                        value += part_y * part_x * maps[channel, top + 1, left + 1]
                    samples[channel, point, row, column] = value * shares[group, point, row, column]
    return samples
