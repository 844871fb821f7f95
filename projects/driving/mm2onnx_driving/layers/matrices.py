"""The inverse of matrices of rigs, for traced graphs."""

import torch
from torch import Tensor


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse (..., 3, 3) by cofactors, in operators of every engine."""
    first, second, third = matrix.unbind(-2)
    columns = _cross(second, third), _cross(third, first), _cross(first, second)
    determinant = (first * columns[0]).sum(-1)[..., None, None]
    return torch.stack(columns, -1) / determinant


def _cross(left: Tensor, right: Tensor) -> Tensor:
    return left.roll(-1, -1) * right.roll(-2, -1) - left.roll(-2, -1) * right.roll(-1, -1)
