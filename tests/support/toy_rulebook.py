"""One convolution's part of a rulebook: (N, K) int32, the input row of an output row and kernel offset."""

from mmdeploy_ext.sparse.rulebook import Level, pairs

UNREAD = ((1, 1, 1), (0, 0, 0))
"""Stride and padding, which a submanifold convolution ignores."""


def submanifold_table(level, kernel_size, dilation=(1, 1, 1)):
    """Return the neighbours of a submanifold convolution; N, one behind the last row, is none."""
    return pairs(level.coordinates, level.spatial_shape, True, kernel_size, *UNREAD, dilation)[1].T


def strided_level(level, kernel_size, stride, padding, dilation=(1, 1, 1)):
    """Return the sites that a convolution reaches, in ascending order, and its table."""
    grid = level.spatial_shape
    coordinates, table = pairs(level.coordinates, grid, False, kernel_size, stride, padding, dilation)
    sizes = zip(grid, kernel_size, stride, padding, dilation, strict=True)
    reached = [(size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes]
    return Level(coordinates, reached), table.T
