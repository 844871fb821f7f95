"""How far a tensor is from another, over several sweeps. Needs numpy only.

`ArrayDistance` is of one pair, relative to its largest value; these are norms, of sums over all pairs.
"""

import numpy as np


class Difference:
    """Cosine and errors of one tensor against another, over several sweeps."""

    def __init__(self) -> None:
        self._products = self._ones = self._others = self._errors = 0.0
        self.largest_error = self.largest = 0.0

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Take a pair in; what is not finite makes every figure not a number."""
        reference, found = reference.ravel(), found.ravel()
        if reference.size == 0:
            return
        off = found - reference
        self._products += _dot(reference, found)
        self._ones += _dot(reference, reference)
        self._others += _dot(found, found)
        self._errors += _dot(off, off)
        self.largest_error = max(self.largest_error, float(np.abs(off).max()))
        self.largest = max(self.largest, float(np.abs(reference).max()))

    @property
    def cosine(self) -> float:
        """1 where both are 0, 0 where one is."""
        if self._ones == self._others == 0:
            return 1.0
        if 0 in (self._ones, self._others):
            return 0.0
        return float(np.clip(self._products / np.sqrt(self._ones * self._others), -1, 1))

    @property
    def error(self) -> float:
        """Norm of the difference over the reference's norm."""
        if self._ones == 0:
            return 0.0 if self._errors == 0 else float('inf')
        return float(np.sqrt(self._errors / self._ones))

    def to_json(self) -> dict[str, float]:
        """Return cosine, relative error, largest error and the reference's largest value."""
        figures = ('cosine', 'error', 'largest_error', 'largest')
        return {key: getattr(self, key) for key in figures}


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.einsum('i,i->', one, other, dtype=np.float64))
