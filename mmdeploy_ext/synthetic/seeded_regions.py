"""The seeded rule of two-stage detectors: proposals by the rule of dense heads, heads of regions here.

Regions of many sizes lie all over the calibration pictures, so that every level and every layer of the heads
has some; class logits spread beside a large background, so that a few per cent of the pairs pass.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.families.parts.mask_logits import heads_of, judge_of, logits_of
from mmdeploy_ext.families.parts.mask_settings import points_of
from mmdeploy_ext.families.parts.region_maps import grid_of, region_maps
from mmdeploy_ext.families.parts.regions import Branch, stages_of
from mmdeploy_ext.families.two_stage.boxes import last_head
from mmdeploy_ext.families.two_stage.grid import Grid
from mmdeploy_ext.families.two_stage.kinds import result_cfg
from mmdeploy_ext.families.two_stage.masks import Masks
from mmdeploy_ext.families.two_stage.proposals import generator_of
from mmdeploy_ext.families.two_stage.proposals import outputs_of as outputs_of_proposals
from mmdeploy_ext.synthetic.seeded_dense import BACKGROUND, for_head, scale_outputs
from mmdeploy_ext.synthetic.seeded_dense import stages_of as stages_of_proposals
from mmdeploy_ext.synthetic.seeded_layers import Target, bring, outputs_of_all

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
    fc_logits=Target(0.0, 1.5),
    fc_mask_iou=Target(0.6, 0.15),
    deconv2=Target(-2.0, 1.0),
)
"""Last layers of heads of regions -> their outputs: classes, deltas, buckets of sides, masks
(also of single points), how well they fit, maps of the points of a grid."""
SPARSER = 4
"""Of so many regions one is looked at by heads of masks and grids, which take most of the time."""
MANY = 200
"""Classes whose masks of all regions take gigabytes; of so many more, as many times fewer are looked at."""
VAST, COMMON, RARE = 1000, 50, 6.0
"""Of more classes than that every so-many-th is common, and the logits of the others are so much lower: with
1,203 that are alike the best one has 0.02, and a proof counts from 0.05."""
DIRECTIONS = 8
"""Differences of inputs that layers with normed weights look for: of drawn weights, which have all 1,024
directions, the logits of all classes are within 0.3."""
SURE = 0.3
"""Thresholds of scores above this ask for classes that stand out (panoptic detectors have 0.6) ..."""
SURER = 2.0
"""... by so much more."""


def regions_of(pictures: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return regions (B, K, 4) float32 xyxy of pictures (B, 3, H, W), in pixels."""
    draw, (height, width) = torch.Generator().manual_seed(seed), pictures.shape[2:]
    count = len(pictures) * REGIONS
    low, high = (torch.tensor(side).log() for side in SIDES)
    sizes = (low + (high - low) * torch.rand(count, 2, generator=draw)).exp()
    whole = torch.tensor([float(width), float(height)])
    centres = torch.rand(count, 2, generator=draw) * whole
    boxes = torch.cat([(centres - sizes / 2).clamp(min=0), torch.minimum(centres + sizes / 2, whole)], 1)
    return boxes.reshape(len(pictures), REGIONS, 4)


def forwards(
    roi_head: nn.Module, maps: Sequence[torch.Tensor], boxes: torch.Tensor
) -> Iterator[tuple[Sequence[nn.Module], Callable[[], Any]]]:
    """Yield heads of regions, and what runs them on `maps` (see `context_maps`) and boxes (B, K, 4)."""
    for stage in range(stages_of(roi_head)):
        branch = Branch(roi_head, 'bbox', stage)
        yield [branch.head], functools.partial(branch, maps, boxes)
    some = boxes[:, :: SPARSER * (1 + last_head(roi_head).num_classes // MANY)]
    found = torch.cat([some, torch.ones_like(some[..., :1])], 2)
    labels, scale = torch.zeros_like(some[..., 0], dtype=torch.int64), torch.ones_like(some[:, 0])
    if roi_head.with_mask:
        yield heads_of(roi_head), functools.partial(logits_of(roi_head), maps, some)
        for head in filter(None, (points_of(roi_head), judge_of(roi_head))):
            yield [head], functools.partial(Masks(roi_head), maps, found, labels, scale)
    if grid_of(roi_head) is not None:
        yield [grid_of(roi_head)], functools.partial(Grid(roi_head), maps, found, labels, scale)


def _propose(head: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Run a head of proposals on features."""
    maps = for_head(head, features)
    clip_hw = torch.tensor([pictures.shape[2:]], dtype=torch.float32)
    outputs_of_proposals(head, maps, clip_hw, generator_of(head))


def run_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Run those heads of a two-stage detector that take statistics from features."""
    if _has_norms(getattr(model, 'rpn_head', None)):
        _propose(model.rpn_head, pictures, features)
    if _has_norms(getattr(model, 'roi_head', None)):
        for _, run in forwards(model.roi_head, region_maps(model, features), regions_of(pictures)):
            run()


def _has_norms(head: nn.Module | None) -> bool:
    norms = nn.modules.batchnorm._BatchNorm
    return head is not None and any(isinstance(module, norms) for module in head.modules())


def scale_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Bring the outputs of all last layers to their targets, in place."""
    if getattr(model, 'rpn_head', None) is not None:
        run = functools.partial(_propose, model.rpn_head, pictures, features)
        for head in stages_of_proposals(model.rpn_head):
            scale_outputs(head, features, run=run)
    if getattr(model, 'roi_head', None) is None:
        return
    maps, stages = region_maps(model, features), stages_of(model.roi_head)
    sure = result_cfg(model).score_thr > SURE
    for heads, run in forwards(model.roi_head, maps, regions_of(pictures)):
        named = [(head, name) for head in heads for name in TARGETS if getattr(head, name, None) is not None]
        layers = [getattr(head, name) for head, name in named]
        for layer in layers:
            if hasattr(layer, 'tempearture'):  # mmdet's name
                aim(layer, run)
        for (head, name), layer, kept in zip(named, layers, outputs_of_all(layers, run), strict=True):
            found = torch.cat(kept, 1)
            mean, deviation = (torch.full((len(found),), value) for value in TARGETS[name])
            if name == 'fc_cls':
                step = COMMON if head.num_classes > VAST else 1
                mean[: head.num_classes] -= RARE * (torch.arange(head.num_classes) % step > 0)
                mean[head.num_classes :] = math.log(head.num_classes / step) + BACKGROUND
                deviation *= stages**0.5  # what the stages of a cascade have in common is their mean
                if sure:
                    deviation, mean = deviation * SURER, mean * SURER / 2
            bring(layer, found, mean, deviation)


def aim(layer: nn.Module, run: Callable[[], Any], seed: int = 0) -> None:
    """Draw the weights of a layer that norms them, and its inputs, as mixtures of what its inputs differ in.

    It is linear, or a convolution of single cells; a run gives it inputs.
    """
    seen: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        run()
    rows = torch.cat([one.transpose(0, 1).flatten(1) for one in seen], 1).T
    rows = nn.functional.normalize(rows, dim=1)
    rows = rows - rows.mean(0)
    some = rows[:: max(len(rows) // DIRECTIONS, 1)][:DIRECTIONS]
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(len(layer.weight), len(some), generator=draw) @ nn.functional.normalize(some, dim=1)
    layer.weight.copy_(mixed.reshape(layer.weight.shape))
