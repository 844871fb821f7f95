"""The graph of detectors of corners: maps, pairs of one class, soft suppression.

Source: mmdet 2.28.2 `dense_heads/corner_head.py` and `dense_heads/centripetal_head.py`.
Glossary: B batch, C classes, h, w size of the maps, k corners of a kind (top left or bottom right), n
results, H, W network input in pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    Suppression,
    gather_rows,
    nms_config,
    number,
    positive,
    rows_of,
)
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.dense_heads import peak_window
from mmdeploy_ext.families.common.image_graphs import box_outputs, image_input, optional_inputs
from mmdeploy_ext.families.corner.facts import CornerFacts
from mmdeploy_ext.runtime.box_coders import peaks_of
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage
from mmdeploy_ext.upstream.operators.operator import hw

STRIDE = 4
"""Stride of an hourglass, pixels."""
MAP_NAMES = ('tl_heat', 'tl_off', 'tl_pair', 'br_heat', 'br_off', 'br_pair')
FULL_NAMES = ('dets', 'labels')
PAIRS = 1000
"""Number of best pairs that enter the suppression: mmdet's `num_dets`."""
FEWEST_CORNERS = 32
"""Smallest `corner_topk`: its square, the number of pairs, is at least `PAIRS`."""
LARGE, CENTRAL = 3500.0, (2.4, 2.1)
"""Area, square pixels, above which a box is large; sides of small, large boxes over the central region's."""


class CornerNetwork(nn.Module):
    """Backbone and head of mmdet's detector with flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of corners of normalised images (B, 3, H, W)."""
        maps = corner_maps(self.model.bbox_head, self.model.extract_feat(image))
        return tuple(tap(name, tensor) for name, tensor in zip(MAP_NAMES, maps, strict=True))


def corner_maps(head: nn.Module, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a head's maps of the last level, as `CornerFullForm.forward` takes them."""
    return last_level(head, head(maps))


def last_level(head: nn.Module, outputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    outputs = [levels[-1] for levels in outputs]
    if head.with_corner_emb:
        first_heat, last_heat, first_pairing, last_pairing, first_offset, last_offset = outputs
    else:
        first_heat, last_heat, first_offset, last_offset, _, _, first_pairing, last_pairing = outputs
    return [first_heat, first_offset, first_pairing, last_heat, last_offset, last_pairing]


def facts_of(head: nn.Module) -> CornerFacts:
    test_cfg = head.test_cfg
    config = {key: positive(key, test_cfg.get(key)) for key in ('corner_topk', 'max_per_img')}
    config['local_maximum_kernel'] = peak_window(test_cfg)
    if config['corner_topk'] < FEWEST_CORNERS:
        raise ConfigError(f'test_cfg.corner_topk={config["corner_topk"]}: expected {FEWEST_CORNERS} or more')
    if config['max_per_img'] > PAIRS:
        raise ConfigError(f'test_cfg.max_per_img={config["max_per_img"]}: expected 1 to {PAIRS}')
    config['distance_threshold'] = number('distance_threshold', test_cfg.get('distance_threshold'), float)
    return CornerFacts(**config, num_classes=int(head.num_classes))


def suppression(test_cfg: Mapping[str, Any]) -> Suppression:
    key = 'nms' if test_cfg.get('nms') else 'nms_cfg'
    config = nms_config(dict(test_cfg, nms=test_cfg.get(key)), soft=True, key=f'model.test_cfg.{key}')
    return Suppression(
        config.iou_threshold,
        config.max_per_img,
        config.class_agnostic,
        trimmed=False,
        soft=config if config.method else None,
    )


@dataclasses.dataclass(frozen=True)
class Corners:
    """The best corners of a kind.

    Attributes:
        scores: (B, k) float32.
        labels: (B, k) int64.
        points: (B, k, 2) x, y in cells, with their offsets.
        pairing: (B, k, 1) embeddings, or (B, k, 2) logarithms of the shift to the centre of the box, cells.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    points: torch.Tensor
    pairing: torch.Tensor


def best_corners(
    heat: torch.Tensor, offsets: torch.Tensor, pairing: torch.Tensor, window: int, count: int
) -> Corners:
    """Return the best `count` peaks of all classes, each the highest of a square of `window` cells (odd).

    `heat` (B, C, h, w) are logits, `offsets` (B, 2, h, w) in cells, `pairing` (B, 1 or 2, h, w).
    """
    scores, index = peaks_of(torch, heat.sigmoid(), window).flatten(1).topk(count, 1)
    height, width = hw(heat).unbind()  # tensors: torch.export has no remainder by a symbol
    cells = height * width
    labels, cell = torch.div(index, cells, rounding_mode='floor'), index % cells
    grid = torch.stack([cell % width, torch.div(cell, width, rounding_mode='floor')], 2)
    corner_offsets, corner_pairing = (
        gather_rows(rows_of(maps, maps.shape[1]), cell) for maps in (offsets, pairing)
    )
    return Corners(scores, labels, grid.to(corner_offsets.dtype) + corner_offsets, corner_pairing)


class CornerFullForm(nn.Module):
    """The stage that the form `full` adds to the network."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.facts, self.suppress = facts_of(head), suppression(head.test_cfg)
        self.embedded = bool(head.with_corner_emb)

    def forward(
        self, image: torch.Tensor, scale_factor: torch.Tensor, border: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5), x1 y1 x2 y2 score, best first, and labels (B, n) int64.

        Boxes are in pixels of the original image; clipped to 0 but to no largest side.

        Args:
            image: (B, 3, H, W); only its size is used.
            scale_factor: (B, 4) float32 `w h w h`, input / original, not 0.
            border: (B, 2) float32 rows of padding above the image and columns left of it.
            maps: heat, offsets, and embeddings or shifts, of top left, then bottom right corners
                (`best_corners`).
        """
        window, count = self.facts.local_maximum_kernel, self.facts.corner_topk
        threshold = self.facts.distance_threshold
        size = hw(maps[0])
        first, last = best_corners(*maps[:3], window, count), best_corners(*maps[3:], window, count)
        stride = (hw(image).to(border) / size.to(border)).flip(0)
        padding = border.flip(1)[:, None]
        low, high = ((corners.points * stride - padding).clamp(min=0) for corners in (first, last))
        low, high = low[:, :, None], high[:, None]
        if self.embedded:
            fits = (first.pairing[:, :, None, 0] - last.pairing[:, None, :, 0]).abs() <= threshold
        else:
            centres = first.points + first.pairing.exp(), last.points - last.pairing.exp()
            first_centres, last_centres = [(points * stride - padding).clamp(min=0) for points in centres]
            fits = _centres_fit(low, high, first_centres[:, :, None], last_centres[:, None], threshold)
        fits = fits & (first.labels[:, :, None] == last.labels[:, None]) & (high > low).all(3)
        scores = (first.scores[:, :, None] + last.scores[:, None]) / 2
        scores = torch.where(fits, scores, torch.full_like(scores, NO_CANDIDATE))
        boxes = torch.cat([low.expand_as(high - low), high.expand_as(high - low)], 3)
        labels = first.labels[:, :, None].expand_as(scores)
        boxes, scores, labels = boxes.flatten(1, 2), scores.flatten(1, 2), labels.flatten(1, 2)
        scores, best = scores.topk(PAIRS, 1)
        boxes, labels = gather_rows(boxes, best) / scale_factor[:, None], labels.gather(1, best)
        outputs = self.suppress(boxes, scores, labels, scores > NO_CANDIDATE)
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, outputs, strict=True))


def _centres_fit(
    low: torch.Tensor,
    high: torch.Tensor,
    first_centres: torch.Tensor,
    last_centres: torch.Tensor,
    threshold: float,
) -> torch.Tensor:
    small, large = (1 / share for share in CENTRAL)
    area = (high - low).prod(3).abs()[..., None]
    share = torch.where(area > LARGE, torch.full_like(area, large), torch.full_like(area, small))
    middle, half_size = (low + high) / 2, share * (high - low) / 2
    begin, end = middle - half_size, middle + half_size
    ratio = (last_centres - first_centres).prod(3).abs() / (end - begin).prod(3).abs()
    first_inside, last_inside = [
        (points > begin) & (points < end) for points in (first_centres, last_centres)
    ]
    return (first_inside & last_inside).all(3) & ~(ratio > threshold)


def smallest(model: nn.Module) -> int:
    """Return the smallest side of an input, pixels."""
    cells = -(-facts_of(model.bbox_head).corner_topk // int(model.bbox_head.num_classes))
    side = next(side for side in range(1, cells + 1) if side * side >= cells)
    return max(detector_parts.smallest(model.bbox_head, STRIDE), (side - 1) * STRIDE + 1)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    multiple = detector_parts.multiple(model)
    image = image_input(options, smallest(model), multiple, padded='all around')
    batch, rows = image.axes[0], facts_of(model.bbox_head).max_per_img
    inputs = (image, *optional_inputs(batch, clips=False, bordered=True))
    return GraphSpec('corner/full', inputs, box_outputs(batch, rows))


def stages(model: nn.Module, options: Options) -> list[Stage]:
    inputs = ('input', 'scale_factor', 'border', *MAP_NAMES)
    return [
        Stage('network', CornerNetwork(model), ('input',), MAP_NAMES),
        Stage('postprocess', CornerFullForm(model.bbox_head), inputs, FULL_NAMES),
    ]
