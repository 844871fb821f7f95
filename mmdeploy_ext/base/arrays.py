"""Distance between two arrays, and conversion of PyTorch tensors to numpy."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, one_line

if TYPE_CHECKING:
    import torch


def load_arrays(path: str | os.PathLike[str], single: str = '') -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, or {`single`: array} of a .npy file; DataError: it is damaged."""
    if not os.path.isfile(path):
        raise DataError(f'{path}: no such file; expected arrays of numpy')
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {single: stored}
        with stored:  # entries that are no arrays are bytes
            return {name: np.asarray(stored[name]) for name in stored.files}
    except Exception as error:  # a damaged archive raises almost anything
        text = f'{path}: cannot be read as numpy arrays (.npz, .npy): {one_line(error)[:200]}'
        raise DataError(text) from error


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to a numpy array of the same shape.

    bfloat16 and similar types become float32 (complex ones complex64), quantised tensors floats, sparse
    tensors dense. NotImplementedError: a tensor on the meta device.
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
    """Distance of an array from a reference of the same shape and kind of dtype, in float64.

    Equal infinities and pairs of NaN differ by 0, unequal integers and texts by at least 1.

    Attributes:
        differences: absolute, flattened; complex values give two.
        max_abs: largest difference.
        scale: largest absolute finite value of the reference.
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
        """`max_abs` over `scale`; infinite if only `scale` is 0."""
        return float('inf') if self.max_abs > self.scale == 0 else self.max_abs / (self.scale or 1.0)

    @property
    def cosine(self) -> float:
        array, reference = self._scaled
        if not (array.any() or reference.any()):
            return 1.0
        norms = math.prod(self._norms)
        return min(max(float(reference @ array) / norms, -1.0), 1.0) if norms > 0 else 0.0

    @property
    def norm_ratio(self) -> float:
        """Norm of the array over the reference's; 1 for two zero vectors, infinite for a zero reference."""
        norm, reference_norm = self._norms
        if reference_norm == 0:
            return float('inf') if norm > 0 else 1.0
        return norm / reference_norm

    @functools.cached_property
    def _norms(self) -> tuple[float, float]:
        return tuple(float(np.linalg.norm(side)) for side in self._scaled)

    @functools.cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """Both sides over their largest absolute value: squares do not overflow."""
        sides = self._array, self._reference
        largest = max(float(np.abs(side).max(initial=0)) for side in sides)
        return sides if largest == 0 else (sides[0] / largest, sides[1] / largest)


def other_values(array: np.ndarray) -> np.ndarray:
    """Return an array that differs in every value, except at 0.5."""
    return ~array if array.dtype.kind in 'biu' else (1 - array).astype(array.dtype)


def is_same(first: Any, second: Any) -> bool:
    """Whether arrays, also in dataclasses and lists, are equal."""
    if dataclasses.is_dataclass(first):
        fields = [field.name for field in dataclasses.fields(first)]
        return type(first) is type(second) and all(
            is_same(getattr(first, name), getattr(second, name)) for name in fields
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind == 'f')
    return bool(first == second)
