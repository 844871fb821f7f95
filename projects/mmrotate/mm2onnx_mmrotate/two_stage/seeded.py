"""Seeded weights of two-stage detectors of rotated boxes: the targets of the last layers of their heads.

A target is mean and standard deviation of a layer's outputs, numbers or one per channel.

Glossary: B pictures, K regions.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mm2onnx_mmrotate.two_stage.boxes import Boxes, RotatedPool
from mm2onnx_mmrotate.two_stage.heads import is_oriented

Target = tuple[float | Tensor, float | Tensor]
TURN = 0.25 * torch.pi
"""Radians. Regions are turned by up to so much."""
PROPOSAL_LOGITS = (-4.6, 1.3)
MOVES, TOUCHES = (0.0, 0.4), (0.0, 0.4)
"""Deltas of proposals: of the centre, and where the box touches its upright bounds."""
GROWTH = {4: (0.8, 1.0), 6: (0.5, 0.5)}
"""Columns of a proposal -> deltas of its sides: most of the best anchors are of the finest level; they grow,
for regions of all levels. Boxes of 6 columns are not clipped: with the target of the others some were 4,000
pixels long and 3 wide in a picture of 256, and rounding left an IoU of 0.998 of two engines."""
LOGITS = (0.0, 1.3)
"""Class logits of regions but for the background."""
BACKGROUND = 1.5
"""Logarithm of the weight of the background over that of all classes together."""
DELTAS = (0.0, 0.8)
GLIDING_TARGETS = dict(fc_fix=(0.0, 1.0), fc_ratio=(1.0, 1.0))
"""Last layer of a `GVBBoxHead` -> target of its logits."""


def heads(
    model: nn.Module, features: Sequence[Tensor], regions: Tensor
) -> Iterator[tuple[nn.Module, Callable[[], Any], Mapping[str, Target]]]:
    """Yield the head of proposals and those of regions, what runs a head, and name of a layer -> target.

    Heads run on `features` of each level, and on upright `regions` (B, K, 4) xyxy; a stage of rotated regions
    gets the same ones, turned by angles within `TURN`.
    """
    rpn_head = model.rpn_head
    targets = dict(rpn_reg=proposal_targets(rpn_head), rpn_cls=PROPOSAL_LOGITS)
    yield rpn_head, functools.partial(rpn_head, features), targets
    centres, sides = (regions[..., :2] + regions[..., 2:]) / 2, regions[..., 2:] - regions[..., :2]
    turns = torch.linspace(-TURN, TURN, regions.shape[1]).to(regions)
    rotated = torch.cat([centres, sides, turns[:, None].expand_as(sides[..., :1])], 2)
    stages = Boxes(model.roi_head, is_oriented(rpn_head)).stages
    for stage in stages:
        head, boxes = stage.head, rotated if isinstance(stage.pool, RotatedPool) else regions
        targets = dict(fc_cls=class_targets(head, len(stages)), fc_reg=delta_targets(head))
        targets |= {name: target for name, target in GLIDING_TARGETS.items() if hasattr(head, name)}
        yield head, functools.partial(stage.outputs, features, boxes), targets


def proposal_targets(head: nn.Module) -> Target:
    """Return the target of the deltas of proposals."""
    channels = head.rpn_reg.out_channels
    columns = channels // head.num_base_priors
    targets = torch.tensor([*[MOVES] * 2, *[GROWTH[columns]] * 2, *[TOUCHES] * (columns - 4)])
    mean, deviation = targets.repeat(channels // columns, 1).unbind(1)
    return mean, deviation


def class_targets(head: nn.Module, stages: int) -> Target:
    """Return the target of class logits; the scores of a cascade are the mean of its stages."""
    mean = torch.full((head.fc_cls.out_features,), LOGITS[0])
    mean[head.num_classes :] = math.log(head.num_classes) + BACKGROUND
    return mean, torch.full_like(mean, LOGITS[1]) * stages**0.5


def delta_targets(head: nn.Module) -> Target:
    """Return the target of the deltas of regions.

    A coder with a `norm_factor` multiplies the delta of the angle by that times pi, and the delta of a
    trained detector is smaller by as much. Without this its turns would go around the circle, and carry six
    times the rounding into the features of the next stage. Measured with the RoI Transformer, R-50: 17 of
    4,442 boxes of the two engines, slivers of 90 to 480 pixels, had IoUs of 0.84 to 0.9987.
    """
    mean, deviation = DELTAS
    norm_factor = getattr(head.bbox_coder, 'norm_factor', None)
    if not norm_factor:
        return mean, deviation
    of_box = deviation * torch.tensor([1.0, 1.0, 1.0, 1.0, 1 / (norm_factor * torch.pi)])
    return mean, of_box.repeat(head.fc_reg.out_features // len(of_box))
