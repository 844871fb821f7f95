"""The seeded rule of YOLACT beside that of dense heads: prototypes and coefficients that make masks."""

from collections.abc import Sequence

import torch
from torch import nn

from projects.toydata.seeded_layers import bring, outputs_of

COEFFICIENTS = 0.5
"""Deviation before tanh. With prototypes of 1, logits of masks of 32 prototypes have one of about 1.5."""


def scale_prototypes(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Bring the last layers of prototypes and coefficients to their deviations, in place; none is fine.

    Args:
        model: the detector, filled but for this.
        features: of each level.
    """
    protonet = getattr(getattr(model, 'mask_head', None), 'protonet', None)
    if protonet is None:
        return
    last = [layer for layer in protonet if isinstance(layer, nn.Conv2d)][-1]
    runs = {
        last: (lambda: protonet(features[0]), 1.0),
        model.bbox_head.conv_coeff: (lambda: model.bbox_head(features), COEFFICIENTS),
    }
    for layer, (run, deviation) in runs.items():
        found = torch.cat(outputs_of(layer, run), 1)
        bring(layer, found, torch.zeros(len(found)), torch.full((len(found),), deviation))
