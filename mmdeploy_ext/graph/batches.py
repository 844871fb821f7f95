"""Which axis of every tensor holds the images: shapes in runs with two numbers of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx

FOLDING = ('Reshape', 'Flatten')
"""Operators that can fold the batch into another axis."""
PICKING = ('Gather', 'Slice')
"""Operators that can take one of the images by a constant."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shapes of tensors that an output needs, in runs with two numbers of images, `sizes`: before and now."""

    sizes: tuple[int, int]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def axis(self, name: str) -> int | None:
        """Return which axis is the batch: the first, or the only one that changes with it; else None."""
        changed = self._changed(name)
        if not changed or tuple(shape[changed[0]] for shape in self.shapes[name]) != self.sizes:
            return None
        return changed[0] if changed[0] == 0 or len(changed) == 1 else None

    def plain(self, name: str) -> bool:
        """Return whether the batch is an axis and nothing else changes with it."""
        return self.axis(name) is not None and len(self._changed(name)) == 1

    def lost(self, name: str) -> bool:
        """Return whether a tensor that held one batch before has no axis that grows with it."""
        if name not in self.shapes or self.axis(name) is not None:
            return False
        one, new = self.shapes[name]
        return one[:1] == new[:1] and (self.sizes[0] == 1 or one[:1] == self.sizes[:1])

    def pinned(self, name: str) -> bool:
        """Return whether a tensor holds more for more images while its first axis stays the old batch."""
        if not self.lost(name) or self.shapes[name][0][:1] != self.sizes[:1]:
            return False
        one, new = (math.prod(shape) for shape in self.shapes[name])
        return new * self.sizes[0] == one * self.sizes[1] > 0

    def folds(self, node: onnx.NodeProto) -> bool:
        """Return whether a node that keeps the order of the values folds the batch into another axis.

        It does keep it where equally many numbers lie before it: [B, 8] may become [1, B, 8].
        """
        source, made = node.input[0], node.output[0]
        before, after = self.axis(source), self.axis(made)
        if node.op_type not in FOLDING or before is None or made not in self.shapes:
            return False
        parts = ((source, before), (made, after))
        return after is None or len({math.prod(self.shapes[name][0][:axis]) for name, axis in parts}) == 2

    def picks(self, node: onnx.NodeProto) -> bool:
        """Return whether a node takes some of the images out of a batch."""
        source, made = node.input[0], node.output[0]
        kept = made not in self.shapes or self.axis(made) is not None
        return node.op_type in PICKING and self.axis(source) is not None and not kept

    def text(self, name: str) -> tuple[str, str]:
        """Return both shapes of a tensor as text."""
        one, new = ('x'.join(map(str, shape)) or 'a scalar' for shape in self.shapes[name])
        return one, new

    def _changed(self, name: str) -> list[int]:
        one, new = self.shapes.get(name, ((), ()))
        return [axis for axis, size in enumerate(one) if size != new[axis]] if len(one) == len(new) else []
