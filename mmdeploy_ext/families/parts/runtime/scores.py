"""Scores of logits, and the rows with the best of them."""

from __future__ import annotations

import numpy as np


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid of logits of any shape, computed in float64 and rounded once to float32.

    So the score of a logit below -88, at which exp of float32 overflows, is not 0 at once.
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(over='ignore'):
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest of values (n,) in descending order; of equal ones the first.

    Values are floats, of which NaN is below all numbers. `count` is 0 or more; if n is less, all are
    returned.
    """
    return np.argsort(-values, kind='stable')[:count]
