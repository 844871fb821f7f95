"""What an output that is not PyTorch's looks like: constant, permuted, of another image. Needs numpy only."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.core.errors import shape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.contract.spec import TensorSpec
    from mmdeploy_ext.tasks.results import DetectionRow

RTOL = 1e-3
"""Largest difference of values that count as the same in another order, relative to the largest value."""
ROUNDED = 5e-3
"""Largest difference, relative to the largest value, that products of rounded factors explain.

With TF32, which ONNX Runtime and TensorRT use by default, tensors of fifteen toys were off by 0.03 to 0.17 %
(docs/engines.md).
"""
EXACT = 1e-5
"""Largest difference, relative to the largest value, that the order of sums in float32 explains: such values
are PyTorch's, and what is wrong with them is their dtype."""
MAX_AXES = 5
"""Tensors with more axes are not looked at in every order of their axes."""
LAYOUTS = {
    2: [(1, 0)],
    3: [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)],
    4: [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2)],
}
"""Number of axes -> the orders of them in which outputs are read again if the results differ; each takes as
long as the judgement of the results. Of four axes those are channels last, channels first, and W before H."""


def misfit(array: np.ndarray, tensor: TensorSpec) -> str:
    """Return why dtype or shape of an array are not those of a tensor of a graph; '' if they are.

    An axis of the tensor that has a name instead of a size may be of any size.
    """
    if array.dtype != np.dtype(tensor.dtype):
        return f'dtype: got {array.dtype}, expected {tensor.dtype}'
    fits = array.ndim == len(tensor.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, array.shape, strict=True)
    )
    shape = shape_text(array.shape)
    return '' if fits else f'shape: got {shape}, expected {tensor.shape_text()}'


def is_constant(array: np.ndarray) -> bool:
    """Return whether an array of floats has several values, and all are the same one, which is not NaN.

    Of whole numbers, truth values and texts it is False.
    """
    return array.size > 1 and array.dtype.kind == 'f' and bool((array == array.flat[0]).all())


def diagnose(expected: np.ndarray, got: np.ndarray) -> str:
    """Return what a wrong output looks like: constant, rounded, PyTorch's values in another order; else ''.

    An order of axes is that of PyTorch's axes in the output.

    An output counts as constant (`is_constant`) if PyTorch's is not. Of others it is '' for values that are
    PyTorch's, such as those of an output that is wrong in its dtype alone, for sides of fewer than two values
    or of different numbers of values, for values that are not finite, and for outputs that are truth values,
    texts or complex.

    Args:
        expected: PyTorch's tensor.
        got: the engine's, of any shape.
    """
    if is_constant(got) and not is_constant(expected) and not np.array_equal(got, expected):
        return f'every value is {got.flat[0]:g}'
    if expected.size != got.size or expected.size < 2 or got.dtype.kind not in 'fiu':
        return ''
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return ''
    distance = ArrayDistance(got, expected)
    if expected.shape == got.shape and distance.max_rel <= EXACT:
        return ''
    if expected.shape == got.shape and distance.scale > 0 and distance.max_rel <= ROUNDED:
        return (
            f"within {100 * distance.max_rel:.2g} % of PyTorch's largest value everywhere, as where factors "
            f'are rounded: is TF32 on, or float16?'
        )
    tolerance = RTOL * distance.scale
    orders = list(itertools.permutations(range(expected.ndim))) if expected.ndim <= MAX_AXES else []
    for order in orders[1:]:
        turned = expected.transpose(order)  # in a raw file it has the shape of the output all the same
        is_moved = got.shape != expected.shape or not np.array_equal(turned.ravel(), expected.ravel())
        if is_moved and np.allclose(turned.ravel(), got.ravel(), rtol=0, atol=tolerance):
            return f"PyTorch's with its axes in the order {_order_text(order)}"
    for axis in range(expected.ndim if expected.shape == got.shape else 0):
        swapped = np.flip(expected, axis)
        if expected.shape[axis] > 1 and np.allclose(swapped, got, rtol=0, atol=tolerance):
            return f"PyTorch's with axis {axis} reversed"
    same_values = np.allclose(np.sort(expected, None), np.sort(got, None), rtol=0, atol=tolerance)
    return "PyTorch's values in another order" if same_values else ''


def _order_text(order: Sequence[int]) -> str:
    return ', '.join(map(str, order))


def with_other_layout(
    rows: Sequence[DetectionRow],
    outputs: Mapping[str, np.ndarray],
    is_equal: Callable[[Mapping[str, np.ndarray]], bool],
) -> list[DetectionRow]:
    """Return rows, whose failing ones name an output that was written with its axes in another order.

    Outputs are read again one at a time, in the orders of `LAYOUTS`, until one makes all results equal; if
    none does, the rows are as they were.

    Args:
        rows: how the results of each image matched PyTorch's.
        outputs: name -> output of the engine, in the shapes of the file.
        is_equal: whether all results of such outputs are PyTorch's.
    """
    for name, array in outputs.items():
        for order in LAYOUTS.get(array.ndim, ()):
            stored_shape = [array.shape[axis] for axis in order]
            reading = array.reshape(stored_shape).transpose(np.argsort(order))
            if not np.array_equal(reading, array) and is_equal({**outputs, name: reading}):
                reason = f"{name} is PyTorch's with its axes in the order {_order_text(order)}"
                return [
                    row if row.passed else dataclasses.replace(row, reason=f'{row.reason}; {reason}')
                    for row in rows
                ]
    return list(rows)


def with_mixed_up_images(
    rows: Sequence[DetectionRow],
    references: Sequence[Any],
    candidates: Sequence[Any],
    match: Callable[..., DetectionRow],
) -> list[DetectionRow]:
    """Return rows; a failing one, whose image has the results of another one of the batch, says of which.

    An image without results of the engine gets no such reason.

    Args:
        rows: how the results of each image matched PyTorch's.
        references: PyTorch's results of each image.
        candidates: the engine's.
        match: takes the title of an image, its reference and a candidate, and returns their row: that is
            `match_detections` of the task with its keywords, see `tasks`.
    """
    named = []
    for index, row in enumerate(rows):
        if not row.passed and len(candidates[index]):
            for position, reference in enumerate(references):
                if position != index and match(row.image, reference, candidates[index]).passed:
                    reason = f'{row.reason}; these are the results of image {position} of the batch'
                    row = dataclasses.replace(row, reason=reason)
                    break
        named.append(row)
    return named
