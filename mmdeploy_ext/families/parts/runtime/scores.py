"""Rows with the best scores."""

from __future__ import annotations

import numpy as np


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest of values (n,) in descending order; of equal ones the first.

    Values are floats, of which NaN is below all numbers. `count` is 0 or more; if n is less, all are
    returned.
    """
    return np.argsort(-values, kind='stable')[:count]
