"""The seeded rule of YOLACT beside that of dense heads: prototypes and coefficients that make masks."""

from collections.abc import Sequence

import torch
from torch import nn

from projects.toydata.seeded_layers import bring, outputs_of

COEFFICIENTS = 0.5
"""Deviation before tanh. With prototypes of 1, logits of masks of 32 prototypes have one of about 1.5."""


def scale_prototypes(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Bring the last layers of prototypes and coefficients to their deviations, in place; none is fine."""
    protonet = getattr(getattr(model, 'mask_head', None), 'protonet', None)
    if protonet is None:
        return
    last = [layer for layer in protonet if isinstance(layer, nn.Conv2d)][-1]
    bring(last, outputs_of(last, lambda: protonet(features[0])), 0.0, 1.0)
    coefficients = model.bbox_head.conv_coeff
    bring(coefficients, outputs_of(coefficients, lambda: model.bbox_head(features)), 0.0, COEFFICIENTS)
