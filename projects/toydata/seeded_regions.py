"""The seeded rule of two-stage detectors: proposals by the rule of dense heads, heads of regions here.

Regions of many sizes lie all over the calibration pictures, so that every level and every layer of the heads
has some; class logits spread beside a large background, so that a few per cent of the pairs pass.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from projects.toydata.seeded_dense import Target, bring, outputs_of, scale_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REGIONS = 96
"""Of each calibration picture."""
SIDES = (12.0, 320.0)
"""Shortest and longest side of a region, pixels."""
TARGETS = dict(
    fc_cls=Target(0.0, 1.3),
    fc_reg=Target(0.0, 0.8),
    fc_reg_cls=Target(0.0, 2.0),
    fc_reg_offset=Target(0.0, 0.3),
    conv_logits=Target(0.0, 1.5),
)
"""Last layers of heads of regions -> their outputs: classes, deltas, buckets of sides, masks."""
BACKGROUND = 1.5
"""How much more than all classes together the background weighs, as a logarithm."""


def regions_of(pictures: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return regions (R, 5) float32 of pictures (B, 3, H, W): index of the picture, then xyxy in pixels."""
    draw, (height, width) = torch.Generator().manual_seed(seed), pictures.shape[2:]
    count = len(pictures) * REGIONS
    low, high = (torch.tensor(side).log() for side in SIDES)
    sizes = (low + (high - low) * torch.rand(count, 2, generator=draw)).exp()
    whole = torch.tensor([float(width), float(height)])
    centres = torch.rand(count, 2, generator=draw) * whole
    boxes = torch.cat([(centres - sizes / 2).clamp(min=0), torch.minimum(centres + sizes / 2, whole)], 1)
    images = torch.arange(len(pictures)).repeat_interleave(REGIONS)
    return torch.cat([images[:, None].float(), boxes], 1)


def forwards(roi_head: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Yield each head of regions, and what runs it on features and regions."""
    for kind in ('bbox', 'mask'):
        head, run = getattr(roi_head, f'{kind}_head', None), getattr(roi_head, f'_{kind}_forward', None)
        if isinstance(head, nn.ModuleList):
            yield from ((one, functools.partial(run, stage)) for stage, one in enumerate(head))
        elif head is not None:
            yield head, run


def run_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Run all heads of a two-stage detector on features."""
    if getattr(model, 'rpn_head', None) is not None:
        model.rpn_head(features)
    if getattr(model, 'roi_head', None) is None:
        return
    regions = regions_of(pictures)
    for _, run in forwards(model.roi_head):
        run(features, regions)


def scale_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Bring the outputs of all last layers to their targets, in place."""
    if getattr(model, 'rpn_head', None) is not None:
        scale_outputs(model.rpn_head, features)
    if getattr(model, 'roi_head', None) is None:
        return
    regions, stages = regions_of(pictures), getattr(model.roi_head, 'num_stages', 1)
    for head, run in forwards(model.roi_head):
        for name, target in TARGETS.items():
            layer = getattr(head, name, None)
            if layer is None:
                continue
            found = torch.cat(outputs_of(layer, functools.partial(run, features, regions)), 1)
            mean, deviation = (torch.full((len(found),), value) for value in target)
            if name == 'fc_cls':
                mean[head.num_classes :] = math.log(head.num_classes) + BACKGROUND
                deviation *= stages**0.5  # what the stages of a cascade have in common is their mean
            bring(layer, found, mean, deviation)
