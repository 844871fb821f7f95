"""Boxes that trained weights rarely predict: hooks on heads change their outputs in some cells.

A proof runs everything after the network with them, see `ImageFamily.exaggerated`: decoding has limits, of
the logarithm of a size or of the distance of a centre, and clipping has borders, that the boxes of a picture
may never reach. A hook is copied with its module, so that an exported copy has it, too.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

CELLS = 17
"""Three of so many cells are changed, each in another way."""
LOGIT_RANGE, HIGHEST = 8.0, 2.0
"""Logits within plus or minus the first differ by up to 0.8 in the first and the last cell; the second is
added to the channel of several that is raised most, which becomes a score of 0.83 to 0.92."""
FACTOR, SHIFT = 8.0, 5.0
"""Factor of outputs in some cells, and sum that is added in others, to odd channels with a minus."""
YAW, ON = 6, 9.0
"""Column of the yaw of a box in 3D, and radians by which it is turned on: almost three half turns."""
LARGEST = 1000 / 16
"""The size that mmdet's coders of deltas limit boxes to, in sizes of their anchors."""
QUADRANT = (LARGEST / 2, -LARGEST / 2, SHIFT, SHIFT)
"""Deltas dx dy dw dh of a box whose size is limited, so far away that its left and its lower side go through
the centre of its anchor: clipping leaves them, and they show the limit."""


def exaggerated_cells(maps: torch.Tensor, coder: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return maps (B, channels, h, w) with larger, shifted and inverted values in some cells.

    `coder` has the settings of the coder that decodes the maps, see `families/parts/runtime/box_coders.py`:
    if they are deltas, shifted ones become `QUADRANT`. None stands for maps that no coder of deltas decodes.
    """
    if coder is not None and coder.get('type') == 'delta':
        deltas = zip(QUADRANT, coder['means'], coder['stds'], strict=True)
        box = maps.new_tensor([(delta - mean) / deviation for delta, mean, deviation in deltas])
        shifted = box.repeat(maps.shape[1] // 4)[:, None, None].expand_as(maps)
    else:
        sign = 1 - 2 * (torch.arange(maps.shape[1], device=maps.device) % 2).to(maps)
        shifted = maps + SHIFT * sign[:, None, None]
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[2:])
    cell = (3 * rows[:, None] + 5 * columns) % CELLS
    changed = torch.where(cell == 0, maps * FACTOR, maps)
    changed = torch.where(cell == 1, shifted, changed)
    return torch.where(cell == 2, -maps, changed)


def raised_corners(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, channels, h, w) with high scores in the first and the last cell.

    Trained weights rarely find anything there, so that a prior that is left out at either end would not show.
    Each channel of a cell is raised by another number: in the first cell the first one by `HIGHEST`, the last
    one by 0, in the last cell the other way round, so that different classes are the best ones. Of many
    channels neighbours are raised almost alike, and the logits decide between them. A single channel is
    raised by 0, and has scores of 0.4 to 0.6 there.
    """
    raised, steps = logits.clone(), torch.linspace(0, HIGHEST, logits.shape[1]).to(logits)
    raised[..., 0, 0] = torch.tanh(logits[..., 0, 0] / LOGIT_RANGE) / 2 + steps.flip(0)
    raised[..., -1, -1] = torch.tanh(logits[..., -1, -1] / LOGIT_RANGE) / 2 + steps
    return raised


def turned_on(maps: torch.Tensor, code_size: int) -> torch.Tensor:
    """Return deltas of boxes in 3D (B, A * code_size, h, w) that turn boxes on by more than a turn.

    A is the number of anchors of a cell; the yaw is column `YAW` of a box. Of three columns of cells the
    first turns one way, the second does not, and the third turns the other way.
    """
    is_yaw = torch.arange(maps.shape[1], device=maps.device) % code_size == YAW
    ways = torch.arange(maps.shape[3], device=maps.device) % 3 - 1
    return maps + ON * is_yaw[:, None, None] * ways


@contextlib.contextmanager
def changed_outputs(head: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block `change` takes the outputs of a head and returns those in their place."""
    with head.register_forward_hook(lambda module, inputs, outputs: change(outputs)):
        yield


@contextlib.contextmanager
def changed_forward(head: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Do what `changed_outputs` does, also if mmdet's test path calls the head's `forward` itself.

    No hook runs then: the class of the head is exchanged, so that a copy of the head has it, too.
    """
    cls = type(head)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return change(cls.forward(self, *args, **kwargs))

    head.__class__ = type(cls.__name__, (cls,), dict(forward=forward, __module__=cls.__module__))
    try:
        yield
    finally:
        head.__class__ = cls


def exchanged(outputs: Any, changes: dict[int, torch.Tensor]) -> Any:
    """Return outputs of a head, tensors in lists and tuples of any depth, with other tensors in some places.

    `changes` are id of a tensor -> the tensor in its place; anything else stays as it is.
    """
    if isinstance(outputs, torch.Tensor):
        return changes.get(id(outputs), outputs)
    if isinstance(outputs, list | tuple):
        return type(outputs)(exchanged(output, changes) for output in outputs)
    return outputs
