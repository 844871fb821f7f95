"""Scores of logits, and the rows with the best of them."""

from __future__ import annotations

import numpy as np


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) in float32, without overflow."""
    return (np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits.astype(np.float32)))).astype(np.float32)


def exact_sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid computed in float64 and rounded once to float32.

    For scores that are compared with each other: `sigmoid` has an absolute error of 3e-8, so that small
    scores which differ in PyTorch may be equal.
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(over='ignore'):
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values in descending order; of equal ones the first."""
    return np.argsort(-values, kind='stable')[:count]
