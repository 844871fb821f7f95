"""Facts of a model, which its files keep: thresholds, coders, strides, sizes.

A family has a frozen dataclass of them, derived from `Facts`, as nested ones are. `Family.facts` makes it of
a model; stages, metadata and runtime read it. Modules of facts import no PyTorch. For annotations see
`core/typed_json.py`.
"""

from typing import Annotated

from mmdeploy_ext.core.typed_json import Bounds, JsonDataclass, Mismatch, optional, plain, read

__all__ = ['Bounds', 'Facts', 'Mismatch', 'optional', 'plain', 'read']

Facts = JsonDataclass
Count = Annotated[int, Bounds(1, 100_000)]
"""Number of things, at least 1."""
Limit = Annotated[int, Bounds(-1, 10**9)]
"""Largest number of things; -1, and of most settings 0, is no limit."""
Stride = Annotated[int, Bounds(1, 4096)]
"""Pixels per cell of a feature map."""
Pixels = Annotated[int, Bounds(1, 16_384)]
"""Side of a picture."""
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]
Range = tuple[float, float, float, float, float, float]
"""Least x, y, z of a range, then the greatest."""
