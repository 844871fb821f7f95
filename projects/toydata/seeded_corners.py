"""The seeded rule of detectors of corners: peaks of a few classes, so that many pairs of corners fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from projects.toydata.seeded_dense import CLASS_TARGET, Target, bring, outputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

TARGETS = dict(
    heat=CLASS_TARGET,
    off=Target(0.5, 0.2),
    emb=Target(0.0, 0.5),
    centripetal_shift=Target(2.3, 0.5),
)
"""Last layers of the branches of a corner -> their outputs; shifts are logarithms of cells."""
POINTED = Target(-3.0, CLASS_TARGET.deviation)
"""Of heat where corners point at centres, which few pairs have in common."""
CLASSES = 2.0
"""Deviation of the mean logits of classes: the best corners are of a few of them."""


def is_cornered(model: nn.Module) -> bool:
    """Return whether boxes of a detector are pairs of corners."""
    return hasattr(getattr(model, 'bbox_head', None), 'tl_heat')


def scale_corners(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Bring the last layers of the last level to their targets, in place.

    Args:
        model: the detector, filled but for this.
        features: of each stage of the hourglass.
    """
    head, draw = model.bbox_head, torch.Generator().manual_seed(1)
    preferred = CLASSES * torch.randn(head.num_classes, generator=draw)
    heat = TARGETS['heat'] if head.with_corner_emb else POINTED
    for kind, target in (TARGETS | dict(heat=heat)).items():
        for corner in ('tl', 'br'):
            branch = getattr(head, f'{corner}_{kind}', None)
            if branch is None:
                continue
            layer = branch[-1][-1].conv
            found = torch.cat(outputs_of(layer, lambda: head(features)), 1)
            mean, deviation = (torch.full((len(found),), value) for value in target)
            bring(layer, found, mean + preferred if kind == 'heat' else mean, deviation)
