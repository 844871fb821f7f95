"""Kinds of wrong outputs: constant, rounded. Needs numpy only."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.core.errors import shape_text

if TYPE_CHECKING:
    from mmdeploy_ext.contract.spec import TensorSpec

ROUNDED = 5e-3
"""Largest difference, relative to the largest value, that products of rounded factors explain."""
MOST_AXES, MOST_IMAGES = 5, 4
"""Largest number of axes, and of images of a batch, of which all orders are tried."""
EXACT = 1e-5
"""Largest difference, relative to the largest value, that the order of sums in float32 explains: such values
are PyTorch's, and what is wrong with them is their dtype."""


def misfit(array: np.ndarray, tensor: TensorSpec) -> str:
    """Return why dtype or shape of an array do not fit a tensor of a graph, or ''."""
    if array.dtype != np.dtype(tensor.dtype):
        return f'dtype: got {array.dtype}, expected {tensor.dtype}'
    fits = array.ndim == len(tensor.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, array.shape, strict=True)
    )
    shape = shape_text(array.shape)
    return '' if fits else f'shape: got {shape}, expected {tensor.shape_text()}'


def is_constant(array: np.ndarray) -> bool:
    """Return whether an array of floats has several values, and all are the same one, which is not NaN."""
    return array.size > 1 and array.dtype.kind == 'f' and bool((array == array.flat[0]).all())


def exchanged(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe images of a batch in another order, or axes in another order; '' if it is neither."""
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
    """Describe a wrong output: constant, in another order, or rounded; else ''."""
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
            f"within {100 * distance.max_rel:.2g} % of PyTorch's largest value everywhere, as where factors "
            f'are rounded: is TF32 on, or float16?'
        )
    return ''
