"""The description of a head of rotated boxes, as plain data; the metadata of a file keep it.

Glossary: B batch, h, w size of a level's maps.
"""

import dataclasses
from typing import Literal

from mmdeploy_ext.contract.facts import Facts


@dataclasses.dataclass(frozen=True)
class RotatedHead(Facts):
    """How the outputs of a head become candidates.

    Attributes:
        outputs: (name, columns per prior) of each kind of output; the graph's are `<name>_<level>`
            (B, priors per cell * columns, h, w), in which the columns of a prior are side by side.
        activation: of class scores, 'sigmoid' or 'softmax' (the background is the last column).
        factor: name of the output with logits of a factor of class scores, such as centerness; '' without
            one.
        refined: whether the one prior of each cell, a rotated box, is an output of the network, `rois`.
        clips: whether centres are clipped to the image.
    """

    outputs: tuple[tuple[str, int], ...]
    activation: Literal['sigmoid', 'softmax'] = 'sigmoid'
    factor: str = ''
    refined: bool = False
    clips: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the outputs, without levels."""
        return tuple(name for name, _ in self.outputs)
