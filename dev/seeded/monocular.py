"""Seeded weights of monocular detectors: targets of their heads' last layers."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dev.seeded.dense import bound_logits
from dev.seeded.layers import Target, outputs_of, rescale
from dev.seeded.weights import HeadStep, fill_seeded, normalised_photograph

LOGITS = {True: Target(-2.6, 0.9), False: Target(-4.2, 1.3)}
"""Target of class logits, for SMOKE or others: a few of a hundred scores pass."""
TARGETS = {
    r'conv_centerness': Target(0.5, 1.0),
    r'conv_(dir_cls|attr)': Target(0.0, 1.0),
    r'conv_depth_cls': Target(0.0, 1.5),
    r'conv_weights\.\d+': Target(0.3, 0.3),
}
"""Names of last layers -> target of their outputs."""
PLACES = {
    True: (Target(0.0, 0.6), Target(0.0, 0.5), Target(0.0, 0.2)),
    False: (Target(0.0, 0.6), Target(2.8, 0.5), Target(0.8, 0.4)),
}
"""Targets of centre offsets in strides, depths and sizes; whether depths and sizes are relative to means,
else logarithms of metres.
"""
YAW, REST, SMOKE_VALUES = Target(0.5, 1.5), Target(0.5, 1.0), Target(0.0, 0.7)
"""Targets of yaws, of other box columns of FCOS3D and PGD, and of SMOKE's columns."""


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    return fill_seeded(model, seed, *normalised_photograph(cfg), head_steps=_head_steps)


def _head_steps(
    model: nn.Module, pictures: torch.Tensor, exposed_pictures: torch.Tensor
) -> tuple[HeadStep, HeadStep]:
    return model.bbox_head, functools.partial(_scale, model, exposed_pictures)


def _scale(model: nn.Module, exposed_pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    head, features = model.bbox_head, list(features)
    exposed = list(model.extract_feat(exposed_pictures))
    is_smoke = not hasattr(head, 'scales')
    if is_smoke:
        box_targets = [SMOKE_VALUES] * len(head.conv_regs)
    else:
        coder = head.bbox_coder
        of_depths, of_sizes = (PLACES[means is not None] for means in (coder.base_depths, coder.base_dims))
        box_targets = [of_sizes[0], of_depths[1], of_sizes[2], YAW, *[REST] * (len(head.conv_regs) - 4)]
    targets = dict(TARGETS, conv_cls=LOGITS[is_smoke])
    targets |= {rf'conv_regs\.{index}': target for index, target in enumerate(box_targets)}
    for names, (mean, deviation) in targets.items():
        for name, layer in head.named_modules():
            if not isinstance(layer, nn.Conv2d) or not re.fullmatch(names, name):
                continue
            rescale(layer, outputs_of(layer, lambda: head(features)), mean, deviation)
            if name == 'conv_cls':
                bound_logits(layer, outputs_of(layer, lambda: head(exposed)), mean)
