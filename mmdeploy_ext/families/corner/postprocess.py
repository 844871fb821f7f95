"""From maps of corners to boxes: peaks, pairs of one class that fit, soft suppression.

Source of the algorithm: mmdet 2.28.2 `dense_heads/corner_head.py` and `dense_heads/centripetal_head.py`.

Glossary: B batch, C classes, h, w size of the maps, k corners of a kind, P pairs, n results, H, W network
input in pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    SoftNmsConfig,
    Suppression,
    gather_rows,
    nms_config,
    number,
    positive,
)
from mmdeploy_ext.families.parts.dense_heads import peak_window
from mmdeploy_ext.families.parts.priors import rows_of
from mmdeploy_ext.families.parts.runtime.box_coders import peaks_of

FULL = ('dets', 'labels')
PAIRS = 1000
"""Of the best pairs, which are suppressed: mmdet's `num_dets`."""
FEWEST_CORNERS = 32
"""Corners of a kind that make as many pairs."""
LARGE, CENTRAL = 3500.0, (2.4, 2.1)
"""Boxes larger than this, pixels, have a central region of 1 / 2.1 of their sides; others of 1 / 2.4."""


def thresholds(test_cfg: Mapping[str, Any]) -> dict[str, float]:
    """Return what `test_cfg` decides; ConfigError names an entry that is missing or not repeated."""
    found = {key: positive(key, test_cfg.get(key)) for key in ('corner_topk', 'max_per_img')}
    found['local_maximum_kernel'] = peak_window(test_cfg)
    if found['corner_topk'] < FEWEST_CORNERS:
        raise ConfigError(f'test_cfg.corner_topk={found["corner_topk"]}: expected {FEWEST_CORNERS} or more')
    if found['max_per_img'] > PAIRS:
        raise ConfigError(f'test_cfg.max_per_img={found["max_per_img"]}: expected 1 to {PAIRS}')
    found['distance_threshold'] = number('distance_threshold', test_cfg.get('distance_threshold'), float)
    return found


def suppression(test_cfg: Mapping[str, Any]) -> Suppression:
    """Return what suppresses pairs, by `nms` or `soft_nms`; ConfigError names what ONNX has no form of."""
    config = nms_config(dict(test_cfg, nms=test_cfg.get('nms') or test_cfg.get('nms_cfg')), soft=True)
    return Suppression(
        *(config.iou_threshold, config.max_per_img, config.class_agnostic),
        trimmed=False,
        soft=config if isinstance(config, SoftNmsConfig) else None,
    )


@dataclasses.dataclass(frozen=True)
class Corners:
    """The best corners of a kind."""

    scores: torch.Tensor  # (B, k)
    labels: torch.Tensor  # (B, k) int64
    places: torch.Tensor  # (B, k, 2) x, y in cells, with their offsets
    more: torch.Tensor  # (B, k, columns) what else the head says of them: embeddings, or shifts


def best_corners(
    heat: torch.Tensor, offsets: torch.Tensor, more: torch.Tensor, side: int, count: int
) -> Corners:
    """Return the best `count` peaks of all classes, each the highest of `side` cells on both axes.

    `heat` (B, C, h, w) are logits, `offsets` (B, 2, h, w) of corners in cells, `more` (B, columns, h, w).
    """
    scores, index = peaks_of(torch, heat.sigmoid(), side).flatten(1).topk(count, 1)
    height, width = hw(heat).unbind()  # tensors: torch.export has no remainder by a symbol
    cells = height * width
    labels, place = torch.div(index, cells, rounding_mode='floor'), index % cells
    grid = torch.stack([place % width, torch.div(place, width, rounding_mode='floor')], 2)
    own, others = (gather_rows(rows_of(one, one.shape[1]), place) for one in (offsets, more))
    return Corners(scores, labels, grid.to(own.dtype) + own, others)


class FullForm(nn.Module):
    """What the `full` form adds to the network."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.config, self.suppress = thresholds(head.test_cfg), suppression(head.test_cfg)
        self.embedded = bool(head.with_corner_emb)

    def forward(
        self, image: torch.Tensor, scale_factor: torch.Tensor, border: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5) and labels (B, n); rows behind the results are zero with label -1.

        `maps` are heat, offsets, and embeddings or shifts, of the upper left corners and then of the others;
        for the other inputs see `dense.forms.FullForm`.
        """
        config, size = self.config, hw(maps[0])
        settings = config['local_maximum_kernel'], config['corner_topk']
        first, last = best_corners(*maps[:3], *settings), best_corners(*maps[3:], *settings)
        stride = (hw(image).to(border) / size.to(border)).flip(0)
        above = border.flip(1)[:, None]
        low, high = ((one.places * stride - above).clamp(min=0) for one in (first, last))
        low, high = low[:, :, None], high[:, None]
        if self.embedded:
            fits = (first.more[:, :, None, 0] - last.more[:, None, :, 0]).abs() <= config[
                'distance_threshold'
            ]
        else:
            centres = first.places + first.more.exp(), last.places - last.more.exp()
            inner = [(one * stride - above).clamp(min=0) for one in centres]
            fits = _central(low, high, inner[0][:, :, None], inner[1][:, None], config['distance_threshold'])
        fits = fits & (first.labels[:, :, None] == last.labels[:, None]) & (high > low).all(3)
        scores = (first.scores[:, :, None] + last.scores[:, None]) / 2
        scores = torch.where(fits, scores, torch.full_like(scores, NO_CANDIDATE))
        boxes = torch.cat([low.expand_as(high - low), high.expand_as(high - low)], 3)
        labels = first.labels[:, :, None].expand_as(scores)
        return self._suppressed(*(one.flatten(1, 2) for one in (boxes, scores, labels)), scale_factor)

    def _suppressed(
        self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, scale_factor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the results of pairs: boxes (B, P, 4), scores and labels (B, P)."""
        scores, best = scores.topk(PAIRS, 1)
        boxes, labels = gather_rows(boxes, best) / scale_factor[:, None], labels.gather(1, best)
        found = self.suppress(boxes, scores, labels, scores > NO_CANDIDATE)
        return tuple(tap(name, one) for name, one in zip(FULL, found, strict=True))


def _central(
    low: torch.Tensor, high: torch.Tensor, first: torch.Tensor, last: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Return whether the centres that both corners point at fit: (B, k, k) bool.

    They have to lie inside a central region, and what is between them must be no larger a share of it than
    the threshold. Corners and the centres that they point at are in pixels, `low` and `first` (B, k, 1, 2),
    `high` and `last` (B, 1, k, 2).
    """
    small, large = (1 / share for share in CENTRAL)
    area = (high - low).prod(3).abs()[..., None]
    share = torch.where(area > LARGE, torch.full_like(area, large), torch.full_like(area, small))
    middle, half = (low + high) / 2, share * (high - low) / 2
    begin, end = middle - half, middle + half
    ratio = (last - first).prod(3).abs() / (end - begin).prod(3).abs()
    inside = [(one > begin) & (one < end) for one in (first, last)]
    return (inside[0] & inside[1]).all(3) & ~(ratio > threshold)


def outputs_of(head: nn.Module, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the maps of `FullForm.forward` that a head gives of its last level."""
    outputs = [one[-1] for one in head(maps)]
    if head.with_corner_emb:
        first_heat, last_heat, first, last, first_offset, last_offset = outputs
    else:
        first_heat, last_heat, first_offset, last_offset, _, _, first, last = outputs
    return [first_heat, first_offset, first, last_heat, last_offset, last]
