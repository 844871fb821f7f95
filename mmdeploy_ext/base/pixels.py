"""Sizes in pixels as users write them."""

from typing import Any

from mmdeploy_ext.base.errors import UsageError


def parse_shape(shape: Any, option: str = '--shape') -> tuple[int, int]:
    """Height and width of one or two numbers; None gives 0, 0 (default)."""
    if shape is None:
        return 0, 0
    sizes = list(shape) if isinstance(shape, list | tuple) else [shape]
    text = f'{option} {" ".join(map(str, sizes))}'
    if len(sizes) not in (1, 2):
        raise UsageError(f'{text}: expected one or two numbers, height and width')
    if not all(type(size) is int and size > 0 for size in sizes):  # a config may have True
        raise UsageError(f'{text}: expected positive sizes in pixels')
    return sizes[0], sizes[-1]
