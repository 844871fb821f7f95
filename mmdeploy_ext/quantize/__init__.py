"""INT8: calibration, ranges in an editable file, and the effect of quantisation on the values."""

from collections.abc import Iterable, Iterator
from typing import Any

from mmdeploy_ext.core import cli

METHODS = ('mse', 'percentile', 'max')
"""Methods to choose ranges of sparse graphs, the default first."""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""Methods to choose ranges of dense graphs, the default first."""
PERCENTILE = 99.99
"""Default percentile of |x|, in percent, for the method of that name."""


def tracked(items: Iterable[Any], title: str) -> Iterator[Any]:
    """Yield the items with a progress bar on stderr if that is a terminal."""
    return cli.tracked(items, len(items) if hasattr(items, '__len__') else None, title)
