"""One convolution's part of a rulebook: (N, K) int32, the input row of an output row and kernel offset."""

from mmdeploy_ext.sparse import rulebook


def submanifold_table(level, kernel_size, dilation=(1, 1, 1), threads=1):
    """Return the neighbours of a submanifold convolution; N, one behind the last row, is none."""
    return rulebook._find([rulebook._submanifold(level, kernel_size, dilation)], threads)[0].T


def strided_level(level, kernel_size, stride, padding, dilation=(1, 1, 1), threads=1):
    """Return the sites that a convolution reaches, in ascending order, and its table."""
    search = rulebook._strided(level, kernel_size, stride, padding, dilation)
    return search.reached, rulebook._find([search], threads)[0].T
