"""Names the kind of a wrong output: constant, in another order, rounded. Needs numpy only."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import shape_text

if TYPE_CHECKING:
    from mmdeploy_ext.spec.tensors import TensorSpec

ROUNDED = 5e-3
"""Largest difference, relative to the largest value, that rounded factors (TF32, fp16) explain."""
MOST_AXES, MOST_IMAGES = 5, 4
"""Limits of axes, and of images of a batch, for trying all orders."""
EXACT = 1e-5
"""Largest relative difference that the order of float32 sums explains; beyond it an output is wrong."""


def misfit(array: np.ndarray, tensor: TensorSpec) -> str:
    """Difference of an array's dtype or shape from a graph's tensor, or ''."""
    if array.dtype != np.dtype(tensor.dtype):
        return f'dtype: got {array.dtype}, expected {tensor.dtype}'
    fits = array.ndim == len(tensor.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, array.shape, strict=True)
    )
    shape = shape_text(array.shape)
    return '' if fits else f'shape: got {shape}, expected {tensor.shape_text()}'


def is_constant(array: np.ndarray) -> bool:
    """Whether an array of floats has several values, all equal and not NaN."""
    return array.size > 1 and array.dtype.kind == 'f' and bool((array == array.flat[0]).all())


def exchanged(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe exchanged images of a batch or exchanged axes, or ''."""
    if expected.ndim != got.ndim or expected.ndim > MOST_AXES or got.dtype.kind != 'f':
        return ''
    if expected.shape == got.shape and 2 <= len(got) <= MOST_IMAGES:
        for order in list(itertools.permutations(range(len(got))))[1:]:  # the first is the order that it has
            if ArrayDistance(got[list(order)], expected).max_rel <= EXACT:
                return f'the images of the batch are in another order: {", ".join(map(str, order))}'
    for axes in list(itertools.permutations(range(got.ndim)))[1:]:
        moved = got.transpose(axes)
        if moved.shape == expected.shape and ArrayDistance(moved, expected).max_rel <= EXACT:
            return f'axes are in another order: {", ".join(map(str, axes))}'
    return ''


def diagnose(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe a wrong output, or ''."""
    if is_constant(got) and not is_constant(expected):
        return f'every value is {got.flat[0]:g}'
    if order := exchanged(expected, got):
        return order
    if expected.shape != got.shape or expected.size < 2 or got.dtype.kind != 'f':
        return ''
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return ''
    distance = ArrayDistance(got, expected)
    if distance.scale > 0 and EXACT < distance.max_rel <= ROUNDED:
        return (
            f"within {100 * distance.max_rel:.2g} % of PyTorch's largest value everywhere, which rounded "
            'factors would explain: check for TF32 or float16'
        )
    return ''
