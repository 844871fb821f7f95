"""The seeded rule of detectors of corners: peaks of a few classes, so that many pairs of corners fit."""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.synthetic.seeded_dense import CLASS_TARGET
from mmdeploy_ext.synthetic.seeded_layers import Target, bring, outputs_of_all

TARGETS = dict(
    heat=CLASS_TARGET, off=Target(0.5, 0.2), emb=Target(0.0, 0.5), centripetal_shift=Target(2.6, 0.2)
)
"""Last layers of the branches of a corner -> their outputs. Shifts are logarithms of cells: two corners fit
where both point at the middle between them, which with more spread hardly any pair does."""
CLASSES = 2.0
"""Deviation of the mean logits of classes: the best corners are of a few of them."""
FAVOURED, ABOVE = 3, 4.0
"""Classes that the best corners are of where corners point at centres, and their mean logit above that of
others. Measured at 320x448: 16 to 60 results of a picture; with `CLASSES` a bright one has 5, with two
favoured classes there are 31 to 81, of fewer classes."""


def is_cornered(model: nn.Module) -> bool:
    """Return whether boxes of a detector are pairs of corners."""
    return hasattr(getattr(model, 'bbox_head', None), 'tl_heat')


def scale_corners(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Bring the last layers of the last level to their targets, given features of each hourglass stage."""
    head = model.bbox_head
    targets = {
        getattr(head, f'{corner}_{kind}')[-1][-1].conv: (kind, target)
        for kind, target in TARGETS.items()
        for corner in ('tl', 'br')
        if hasattr(head, f'{corner}_{kind}')
    }
    outputs = outputs_of_all(list(targets), lambda: head(features))
    for (layer, (kind, target)), parts in zip(targets.items(), outputs, strict=True):
        offset = _preferred(head) if kind == 'heat' else 0.0
        bring(layer, torch.cat(parts, 1), target.mean + offset, target.deviation)


def _preferred(head: nn.Module) -> torch.Tensor:
    """Return (C,) by how much the mean logits of classes are above that of all."""
    drawn = torch.randn(head.num_classes, generator=torch.Generator().manual_seed(1))
    if head.with_corner_emb:
        return CLASSES * drawn
    return torch.zeros_like(drawn).index_fill(0, drawn.topk(FAVOURED).indices, ABOVE)
