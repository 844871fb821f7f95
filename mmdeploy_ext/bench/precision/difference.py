"""Difference of two tensors over several samples: cosine and norms, summed over all pairs."""

import math

import numpy as np


def severity(error: float) -> float:
    """Sort key, worst last: NaN counts as infinite."""
    return math.inf if math.isnan(error) else error


class Difference:
    """Cosine and errors of a tensor against a reference; without values 1 and 0.

    Attributes:
        largest_error: largest absolute difference.
        largest: largest absolute reference value.
    """

    def __init__(self) -> None:
        self._products = self._reference_squares = self._squares = self._error_squares = 0.0
        self.largest_error = self.largest = 0.0

    def add(self, reference: np.ndarray, values: np.ndarray) -> None:
        """Add a pair of equal size; NaN and infinity spread to cosine and errors."""
        reference, values = reference.ravel(), values.ravel()
        if reference.size != values.size:
            raise ValueError(f'{values.size} values, expected {reference.size} as in the reference')
        if reference.size == 0:
            return
        errors = values - reference
        self._products += _dot(reference, values)
        self._reference_squares += _dot(reference, reference)
        self._squares += _dot(values, values)
        self._error_squares += _dot(errors, errors)
        self.largest_error = float(np.maximum(self.largest_error, np.abs(errors).max()))
        self.largest = float(np.maximum(self.largest, np.abs(reference).max()))

    @property
    def cosine(self) -> float:
        """1 if both are 0, 0 if one is."""
        if self._reference_squares == self._squares == 0:
            return 1.0
        if 0 in (self._reference_squares, self._squares):
            return 0.0
        return float(np.clip(self._products / np.sqrt(self._reference_squares * self._squares), -1, 1))

    @property
    def error(self) -> float:
        """Norm of the difference over the reference's norm; 0 or infinity for a reference of zeros."""
        if self._reference_squares == 0:
            return 0.0 if self._error_squares == 0 else float('inf')
        return float(np.sqrt(self._error_squares / self._reference_squares))

    def to_json(self) -> dict[str, float]:
        return dict(
            cosine=self.cosine, error=self.error, largest_error=self.largest_error, largest=self.largest
        )


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.einsum('i,i->', first, second, dtype=np.float64))
