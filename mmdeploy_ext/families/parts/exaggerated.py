"""Boxes that trained weights rarely give: outputs of heads are changed in some cells, by hooks on the heads.

A proof runs with them what follows the network, see `ImageFamily.exaggerated`: decoding has limits, of the
logarithm of a size or of the distance of a centre, and clipping has borders, that no box of a picture may
reach. A hook is copied with its module, so that what is exported has it, too.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

CELLS = 17
"""Of so many cells three are changed, another way each; neighbours have different places."""
WIDTH, HIGHEST = 8.0, 2.0
"""Logits within plus or minus the first differ by up to 0.8 in the first and the last cell; what is added to
the highest one, which becomes a score of 0.83 to 0.92."""
FARTHER, AWAY = 8.0, 5.0
"""What outputs are multiplied by in some cells, and what is added in others."""
LARGEST = 1000 / 16
"""The size that mmdet's coders of deltas limit boxes to, in sizes of their anchors."""
QUADRANT = (LARGEST / 2, -LARGEST / 2, AWAY, AWAY)
"""Deltas dx dy dw dh of a box whose size is limited, so far away that its left and its lower side go through
the centre of its anchor: clipping leaves them, and they show the limit."""


def exaggerated_cells(maps: torch.Tensor, coder: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return maps (B, columns, h, w) with larger, shifted and inverted values in some cells.

    `coder` has the settings of one of deltas, see `families/parts/runtime/box_coders.py`.
    """
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[2:])
    place = (3 * rows[:, None] + 5 * columns) % CELLS
    found = torch.where(place == 0, maps * FARTHER, maps)
    found = torch.where(place == 1, _shifted(maps, coder or {}), found)
    return torch.where(place == 2, -maps, found)


def raised_corners(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, columns, h, w) with high scores in the first and the last cell.

    Trained weights rarely find anything there, so that a prior that is left out at either end would not show.
    The first column of the first cell and the last one of the last cell have the highest scores, which no
    other box of the cell suppresses. No two become equal.
    """
    raised, steps = logits.clone(), torch.linspace(0, HIGHEST, logits.shape[1]).to(logits)
    raised[..., 0, 0] = torch.tanh(logits[..., 0, 0] / WIDTH) / 2 + steps.flip(0)
    raised[..., -1, -1] = torch.tanh(logits[..., -1, -1] / WIDTH) / 2 + steps
    return raised


def _shifted(maps: torch.Tensor, coder: Mapping[str, Any]) -> torch.Tensor:
    if coder.get('type') == 'delta':
        deltas = zip(QUADRANT, coder['means'], coder['stds'], strict=True)
        box = maps.new_tensor([(delta - mean) / deviation for delta, mean, deviation in deltas])
        return box.repeat(maps.shape[1] // 4)[:, None, None].expand_as(maps)
    sign = 1 - 2 * (torch.arange(maps.shape[1], device=maps.device) % 2).to(maps)
    return maps + AWAY * sign[:, None, None]


@contextlib.contextmanager
def changed_outputs(head: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block a head gives changed outputs."""
    with head.register_forward_hook(lambda module, inputs, outputs: change(outputs)):
        yield


@contextlib.contextmanager
def changed_forward(head: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block a head gives changed outputs, also where mmdet's test path calls its `forward`.

    No hook runs there. It is the class of the head that changes, so that a copy of it has it, too.
    """
    kind = type(head)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return change(kind.forward(self, *args, **kwargs))

    head.__class__ = type(kind.__name__, (kind,), dict(forward=forward, __module__=kind.__module__))
    try:
        yield
    finally:
        head.__class__ = kind


def replaced(outputs: Any, others: dict[int, torch.Tensor]) -> Any:
    """Return nested outputs in which some tensors, known by their id, are replaced."""
    if isinstance(outputs, torch.Tensor):
        return others.get(id(outputs), outputs)
    if isinstance(outputs, list | tuple):
        return type(outputs)(replaced(one, others) for one in outputs)
    return outputs
