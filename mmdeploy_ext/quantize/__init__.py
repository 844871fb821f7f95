"""INT8: calibration, ranges in an editable file, and the effect of quantisation on the values."""

from collections.abc import Iterable, Iterator
from typing import Any

from mmdeploy_ext.core import cli

METHODS = ('mse', 'percentile', 'max')
"""Methods to choose ranges of sparse graphs, the default first.

They are the range of the least squared error, a percentile of |x|, and the largest |x|.
"""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""Methods to choose ranges of dense graphs, the default first.

They are the smallest and largest value, and these clipped by a percentile of |x| or by the least squared
error.
"""
PERCENTILE = 99.99
"""Default percentile of |x|, in percent, for the method of that name."""


def tracked(items: Iterable[Any], title: str) -> Iterator[Any]:
    """Yield the items, with a progress bar called `title` on stderr if that is a terminal."""
    return cli.tracked(items, len(items) if hasattr(items, '__len__') else None, title)
