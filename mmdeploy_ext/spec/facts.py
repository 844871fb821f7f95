"""Facts of a model kept in its files: thresholds, coders, strides, sizes. No PyTorch."""

from typing import Annotated

from mmdeploy_ext.base.typed_json import Bounds, JsonDataclass, Mismatch, optional, plain, read

__all__ = ['Bounds', 'Facts', 'Mismatch', 'optional', 'plain', 'read']

Facts = JsonDataclass
Count = Annotated[int, Bounds(1, 100_000)]
Limit = Annotated[int, Bounds(-1, 10**9)]
"""Largest number; -1, and usually 0: no limit."""
Stride = Annotated[int, Bounds(1, 4096)]
"""Pixels per cell of a feature map."""
Pixels = Annotated[int, Bounds(1, 16_384)]
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]
MaskThreshold = Annotated[float, Bounds(maximum=1)]
"""Inclusive; below 0, masks are 255 times their probabilities, uint8."""
Range = tuple[float, float, float, float, float, float]
"""Smallest x, y, z, then largest."""
