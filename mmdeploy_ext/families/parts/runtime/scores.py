"""Rows with the best scores."""

from __future__ import annotations

import numpy as np


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest of values (n,) in descending order; of equal ones the first."""
    return np.argsort(-values, kind='stable')[:count]
