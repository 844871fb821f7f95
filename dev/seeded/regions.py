"""The seeded rule of the region heads of two-stage detectors.

Glossary: B pictures of H x W pixels, K regions of each.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dev.seeded.dense import BACKGROUND, for_head, scale_outputs
from dev.seeded.dense import stages_of as stages_of_proposals
from dev.seeded.layers import Target, outputs_of_all, rescale
from mmdeploy_ext.families.common.mask_heads import heads_of, judge_of, mask_logits_module, points_of
from mmdeploy_ext.families.common.proposals import generator_of
from mmdeploy_ext.families.common.proposals import outputs_of as outputs_of_proposals
from mmdeploy_ext.families.common.regions import RegionBranch, grid_of, region_maps, stages_of
from mmdeploy_ext.families.two_stage.boxes import Grid, last_head
from mmdeploy_ext.families.two_stage.masks import Masks
from mmdeploy_ext.families.two_stage.supported_parts import result_cfg

REGIONS = 96
"""Regions of each calibration picture."""
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
"""Last layer of a head of regions -> target."""
STEP = 4
"""Heads of masks and grids run on every fourth region."""
MANY_CLASSES = 200
"""Classes above which the step grows, since masks take gigabytes."""
VAST_CLASSES, COMMON_STEP, RARE_SHIFT = 1000, 50, 6.0
"""With more than 1,000 classes only every 50th is common; the others' logits are 6 lower. With 1,203 equal
classes the best score would be 0.02; a proof counts from 0.05.
"""
DIRECTIONS = 8
"""Input differences to which layers with normed weights respond; in 1,024 random directions all classes'
logits are within 0.3.
"""
HIGH_THRESHOLD = 0.3
"""Score threshold that needs more deviation (panoptic detectors: 0.6)."""
HIGH_THRESHOLD_FACTOR = 2.0
"""Factor of that deviation."""


def regions_of(pictures: torch.Tensor) -> torch.Tensor:
    """Return `REGIONS` regions (B, K, 4) float32 xyxy, in pixels, of pictures (B, 3, H, W)."""
    generator, (height, width) = torch.Generator().manual_seed(0), pictures.shape[2:]
    count = len(pictures) * REGIONS
    low, high = (torch.tensor(side).log() for side in SIDES)
    sizes = (low + (high - low) * torch.rand(count, 2, generator=generator)).exp()
    picture_size = torch.tensor([float(width), float(height)])
    centres = torch.rand(count, 2, generator=generator) * picture_size
    starts = (centres - sizes / 2).clamp(min=0)
    ends = torch.minimum(centres + sizes / 2, picture_size)
    return torch.cat([starts, ends], 1).reshape(len(pictures), REGIONS, 4)


def forwards(
    roi_head: nn.Module, maps: Sequence[torch.Tensor], boxes: torch.Tensor
) -> Iterator[tuple[Sequence[nn.Module], Callable[[], Any]]]:
    """Yield the heads of regions that run together, and a function that runs them.

    `maps`: see `region_maps`; `boxes` (B, K, 4) xyxy in pixels.
    """
    for stage in range(stages_of(roi_head)):
        branch = RegionBranch(roi_head, 'bbox', stage)
        yield [branch.head], functools.partial(branch, maps, boxes)
    boxes = boxes[:, :: STEP * (1 + last_head(roi_head).num_classes // MANY_CLASSES)]
    detections = torch.cat([boxes, torch.ones_like(boxes[..., :1])], 2)
    labels, scale = torch.zeros_like(boxes[..., 0], dtype=torch.int64), torch.ones_like(boxes[:, 0])
    if roi_head.with_mask:
        yield heads_of(roi_head), functools.partial(mask_logits_module(roi_head), maps, boxes)
        for head in filter(None, (points_of(roi_head), judge_of(roi_head))):
            yield [head], functools.partial(Masks(roi_head), maps, detections, labels, scale)
    if grid_of(roi_head) is not None:
        yield [grid_of(roi_head)], functools.partial(Grid(roi_head), maps, detections, labels, scale)


def _propose(head: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    maps = for_head(head, features)
    clip_hw = torch.tensor([pictures.shape[2:]], dtype=torch.float32)
    outputs_of_proposals(head, maps, clip_hw, generator_of(head))


def run_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Run the head of proposals, and the heads of regions, if they have batch normalisations.

    `pictures` (B, 3, H, W) are normalised; `features` are `extract_feat`'s.
    """
    if _has_norms(getattr(model, 'rpn_head', None)):
        _propose(model.rpn_head, pictures, features)
    if _has_norms(getattr(model, 'roi_head', None)):
        for _, run in forwards(model.roi_head, region_maps(model, features), regions_of(pictures)):
            run()


def _has_norms(head: nn.Module | None) -> bool:
    norms = nn.modules.batchnorm._BatchNorm
    return head is not None and any(isinstance(module, norms) for module in head.modules())


def scale_heads(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Rescale all last layers of a two-stage detector, in place, to their targets.

    `pictures` (B, 3, H, W) are normalised; `features` are `extract_feat`'s.
    """
    if getattr(model, 'rpn_head', None) is not None:
        run = functools.partial(_propose, model.rpn_head, pictures, features)
        for head in stages_of_proposals(model.rpn_head):
            scale_outputs(head, features, run=run)
    if getattr(model, 'roi_head', None) is None:
        return
    stages = stages_of(model.roi_head)
    high_threshold = result_cfg(model).score_thr > HIGH_THRESHOLD
    for heads, run in forwards(model.roi_head, region_maps(model, features), regions_of(pictures)):
        named = [(head, name) for head in heads for name in TARGETS if getattr(head, name, None) is not None]
        layers = [getattr(head, name) for head, name in named]
        for layer in layers:
            if hasattr(layer, 'tempearture'):  # mmdet's spelling
                draw_normed_weights(layer, run)
        for (head, name), layer, calls in zip(named, layers, outputs_of_all(layers, run), strict=True):
            outputs = torch.cat(calls, 1)
            mean, deviation = (torch.full((len(outputs),), value) for value in TARGETS[name])
            if name == 'fc_cls':
                step = COMMON_STEP if head.num_classes > VAST_CLASSES else 1
                mean[: head.num_classes] -= RARE_SHIFT * (torch.arange(head.num_classes) % step > 0)
                mean[head.num_classes :] = math.log(head.num_classes / step) + BACKGROUND
                deviation *= stages**0.5  # the scores of a cascade are the mean of its stages
                if high_threshold:
                    deviation, mean = deviation * HIGH_THRESHOLD_FACTOR, mean * HIGH_THRESHOLD_FACTOR / 2
            rescale(layer, outputs, mean, deviation)


def draw_normed_weights(layer: nn.Module, run: Callable[[], Any]) -> None:
    """Draw the weights of a normed layer as mixtures of differences of its inputs."""
    inputs: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        run()
    rows = torch.cat([call.transpose(0, 1).flatten(1) for call in inputs], 1).T
    rows = nn.functional.normalize(rows, dim=1)
    rows = rows - rows.mean(0)
    directions = rows[:: max(len(rows) // DIRECTIONS, 1)][:DIRECTIONS]
    directions = nn.functional.normalize(directions, dim=1)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(layer.weight), len(directions), generator=generator) @ directions
    layer.weight.copy_(weights.reshape(layer.weight.shape))
