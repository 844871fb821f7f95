"""Arrays: the distance of two, and tensors of PyTorch as arrays of numpy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return the numbers of a tensor as an array of its own, with its shape.

    Those of a type that numpy lacks, such as bfloat16, become float32, or complex64 if they are complex,
    quantised ones the floats that they stand for; sparse tensors are filled with zeros. NotImplementedError:
    a tensor of the meta device, which has no numbers.
    """
    import torch

    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    try:
        return tensor.numpy().copy()
    except TypeError:
        return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32).numpy()


class ArrayDistance:
    """The distance of an array from a reference of the same shape and kind of dtype, computed in float64.

    The same infinity, or NaN on both sides, is no difference; if only one side is finite the difference is
    infinite. Integers that differ do so by 1 at least, even if they are equal in float64, and texts by 1.
    `cosine` and `norm_ratio` mean something of finite numbers only.

    Attributes:
        differences: absolute difference of each value, flattened; of complex values each part is one.
        max_abs: the largest of them.
        scale: the largest absolute finite value of the reference.
    """

    def __init__(self, array: np.ndarray, reference: np.ndarray) -> None:
        kind, sides = reference.dtype.kind, (array.ravel(), reference.ravel())
        if kind in 'OSU':
            sides = sides[0] != sides[1], np.zeros(reference.size)
        if kind == 'c':
            sides = tuple(side.astype(np.complex128).view(np.float64) for side in sides)
        self._array, self._reference = (side.astype(np.float64) for side in sides)
        with np.errstate(invalid='ignore', over='ignore'):
            self.differences = np.abs(self._array - self._reference)
        if kind in 'iu':
            self.differences = np.maximum(self.differences, sides[0] != sides[1])
        sizes = np.abs(self._reference)
        is_finite = np.isfinite(self.differences)
        if not is_finite.all():
            both_nan = np.isnan(self._array) & np.isnan(self._reference)
            same = both_nan | (self._array == self._reference)
            self.differences = np.where(same, 0.0, np.where(is_finite, self.differences, np.inf))
            sizes = sizes[np.isfinite(sizes)]
        self.max_abs = float(self.differences.max(initial=0))
        self.scale = float(sizes.max(initial=0))

    @property
    def max_rel(self) -> float:
        """The largest difference over the reference's largest value; infinite if only the latter is 0."""
        return float('inf') if self.max_abs > self.scale == 0 else self.max_abs / (self.scale or 1.0)

    @property
    def cosine(self) -> float:
        """Cosine of both as vectors; 1 for two zero vectors, 0 for one."""
        array, reference = self._scaled
        if not (array.any() or reference.any()):
            return 1.0
        norms = float(np.linalg.norm(reference) * np.linalg.norm(array))
        return min(max(float(reference @ array) / norms, -1.0), 1.0) if norms > 0 else 0.0

    @property
    def norm_ratio(self) -> float:
        """Norm of the array over the reference's; 1 for two zero vectors, infinite for a zero reference."""
        norm, reference_norm = (float(np.linalg.norm(side)) for side in self._scaled)
        if reference_norm == 0:
            return float('inf') if norm > 0 else 1.0
        return norm / reference_norm

    @functools.cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """The array and the reference over the largest absolute value of both: no square overflows."""
        sides = self._array, self._reference
        largest = max(float(np.abs(side).max(initial=0)) for side in sides)
        return sides if largest == 0 else (sides[0] / largest, sides[1] / largest)
