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
    """Shapes of tensors in a run with as many images as before, and in one with the new number.

    Attributes:
        sizes: both numbers.
        shapes: tensor -> shape in each of the runs; of tensors that are needed for an output.
    """

    sizes: tuple[int, int]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def axis(self, name: str) -> int | None:
        """Return which axis is the batch: the first, or the only one that changes with it; else None."""
        one, new = self.shapes.get(name, ((), ()))
        changed = self._changed(name)
        if not changed or (one[changed[0]], new[changed[0]]) != self.sizes:
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
        if after is None:
            return True
        return math.prod(self.shapes[source][0][:before]) != math.prod(self.shapes[made][0][:after])

    def picks(self, node: onnx.NodeProto) -> bool:
        """Return whether a node takes some of the images out of a batch."""
        if node.op_type not in PICKING or self.axis(node.input[0]) is None:
            return False
        return node.output[0] in self.shapes and self.axis(node.output[0]) is None

    def text(self, name: str) -> tuple[str, str]:
        """Return both shapes of a tensor as text."""
        one, new = ('x'.join(map(str, shape)) or 'a scalar' for shape in self.shapes[name])
        return one, new

    def _changed(self, name: str) -> list[int]:
        one, new = self.shapes.get(name, ((), ()))
        if len(one) != len(new):
            return []
        return [axis for axis, (old, size) in enumerate(zip(one, new, strict=True)) if old != size]
