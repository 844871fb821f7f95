"""Rows with the best scores."""

from __future__ import annotations

import numpy as np


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values (n,), descending; ties keep their order."""
    return np.argsort(-values, kind='stable')[:count]
