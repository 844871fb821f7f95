"""INT8: calibration, ranges in an editable file, and effects of quantisation."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mmdeploy_ext.base import cli

METHODS = ('mse', 'percentile', 'max')
"""Methods for ranges of sparse graphs, default first: least squared error, percentile, largest |x|."""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""Methods for ranges of dense graphs, default first: extremes, or extremes clipped by percentile or error.
"""
PERCENTILE = 99.99
"""Default percentile of |x|, in percent."""

KEEP_RESULTS = 0.999
"""Default share of PyTorch's results that a precision plan keeps."""


def tracked(items: Iterable[Any], title: str) -> Iterator[Any]:
    return cli.tracked(items, len(items) if hasattr(items, '__len__') else None, title)


def digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
