"""Faults of RT-DETR: its post-processing, and its model while it is traced, since both sides have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planted_boxes import first_of_batch, one_less, swapped
from planting import argument, called, planted, result, settings, traced, when_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

PACKAGE = 'mmdeploy_ext.families.rtdetr'
POST, DECODER, ENCODER = (
    'mmdeploy_ext.models.rtdetr.decoder:Postprocess.forward',
    'mmdeploy_ext.models.rtdetr.decoder',
    'mmdeploy_ext.models.rtdetr.encoder',
)
ATTENTION, ATTEND = (
    'mmdeploy_ext.models.rtdetr.attention:DeformableAttention',
    'mmdeploy_ext.models.rtdetr.attention:attend_maps',
)
NETWORK, FEEDS = f'{PACKAGE}.graphs:RtDetrNetwork.forward', f'{PACKAGE}.graphs:feeds'
SIZES = 'orig_target_sizes'
TOY = 'rtdetr'


def post(place: int, change: Callable) -> Change:
    """Return a fault of an argument of the post-processing in the graph: logits 1, boxes 2, sizes 3."""
    return POST, traced(argument(place, change))


def outputs(change: Callable) -> Change:
    """Return a fault of labels, boxes and scores (B, n) of the graph."""
    return POST, traced(result(lambda right, *_: change(*right)))


def network(change: Callable) -> Change:
    """Return a fault of logits, boxes, and tokens if the graph has them."""
    return NETWORK, result(lambda right, *_: change(*right))


# --- results ----------------------------------------------------------------------------------------
planted("all images have the first one's size", TOY, post(3, lambda sizes: sizes[:1]))
planted('height and width swapped', TOY, post(3, swapped))
planted(
    'sizes of multiples of 32', TOY, post(3, lambda sizes: torch.div(sizes, 32, rounding_mode='floor') * 32)
)
planted(
    'boxes clipped to the picture',
    TOY,
    (f'{DECODER}:cxcywh_to_xyxy', when_traced(lambda original, boxes: original(boxes).clamp(0, 1))),
)
planted(
    'boxes begin at their centre',
    TOY,
    (
        f'{DECODER}:cxcywh_to_xyxy',
        when_traced(lambda original, boxes: torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)),
    ),
)
planted('boxes of whole pixels', TOY, outputs(lambda labels, boxes, scores: (labels, boxes.round(), scores)))
planted(
    'boxes end a pixel early',
    TOY,
    outputs(lambda labels, boxes, scores: (labels, boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0]), scores)),
)
planted('scores by a softmax', TOY, post(1, lambda logits: torch.logit(logits.softmax(2), 1e-6)))
planted(
    'scores rounded to float16',
    TOY,
    outputs(lambda labels, boxes, scores: (labels, boxes, scores.half().float())),
)
planted(
    'the best class of each query alone',
    TOY,
    post(1, lambda logits: torch.where(logits == logits.amax(2, keepdim=True), logits, logits - 3)),
)
planted('labels begin at 1', TOY, outputs(lambda labels, boxes, scores: ((labels + 1) % 6, boxes, scores)))
planted('labels of the query', TOY, outputs(lambda labels, boxes, scores: (labels.roll(1, 1), boxes, scores)))
planted('max_per_img 59', TOY, outputs(lambda *given: tuple(one[:, :-1] for one in given)))
planted(
    'max_per_img: the last result is the one before it',
    TOY,
    outputs(lambda *given: tuple(torch.cat([one[:, :-1], one[:, -2:-1]], 1) for one in given)),
)
planted(
    'results below 0.05 are dropped',
    TOY,
    outputs(
        lambda labels, boxes, scores: (labels, boxes * (scores >= 0.05)[..., None], scores * (scores >= 0.05))
    ),
)
planted(
    'boxes of the query beside', TOY, network(lambda logits, boxes, *rest: (logits, boxes.roll(1, 1), *rest))
)
planted(
    'logits of the first image',
    TOY,
    network(lambda logits, boxes, *rest: (first_of_batch(logits), boxes, *rest)),
)
planted(
    'fed: height before width',
    TOY,
    (FEEDS, settings(**{SIZES: lambda sizes: sizes[:, ::-1].copy()})),
    shared=True,
)
# --- the model, while it is traced ------------------------------------------------------------------
planted(
    'sampling points rounded to 1 / 512',
    TOY,
    (f'{ATTENTION}.locations', when_traced(lambda original, *args: (original(*args) * 512).round() / 512)),
)
planted(
    'sampling points: offsets of whole boxes',
    TOY,
    (
        f'{ATTENTION}.locations',
        when_traced(
            lambda original, self, query, boxes: original(
                self, query, torch.cat([boxes[..., :2], boxes[..., 2:] * 1.05], -1)
            )
        ),
    ),
)
planted(
    'sampling points as y x',
    TOY,
    (f'{ATTENTION}.locations', traced(result(lambda right, *_: right.flip(-1)))),
)
planted(
    'odds of inverse_sigmoid at least 0.1',
    TOY,
    (f'{DECODER}:inverse_sigmoid', when_traced(lambda original, values: original(values, 0.1))),
)


def _other_layout(original: Callable, self: Any, features: torch.Tensor) -> torch.Tensor:
    layout, self.layout = self.layout, 'row_major' if self.layout == 'original' else 'original'
    try:
        return original(self, features)
    finally:
        self.layout = layout


def _aligned(original: Callable, values: Any, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    levels = [
        torch.nn.functional.grid_sample(
            value, locations[:, :, :, level].transpose(1, 2).flatten(0, 1), align_corners=True
        )
        for level, value in enumerate(values)
    ]
    return (torch.cat(levels, -1) * weights).sum(-1)


def _bent(original: Callable, self: Any) -> None:
    original(self)
    self.conv.bias = torch.nn.Parameter(self.conv.bias * 0.98)


planted(
    'positions in the layout of square maps',
    TOY,
    (f'{ENCODER}:PositionEmbedding.forward', when_traced(_other_layout)),
)
planted(
    'positions of the map of the traced size',
    TOY,
    (f'{ENCODER}:PositionEmbedding.forward', traced(result(lambda right, *_: right * 0.98))),
)
planted('deformable attention aligns corners', TOY, (ATTEND, when_traced(_aligned)))
planted(
    'deformable attention: points beyond a map are at its border',
    TOY,
    (ATTEND, traced(argument(1, lambda locations: locations.clamp(-1, 1)))),
)
planted(
    'weights of the map beside',
    TOY,
    (f'{ATTENTION}.weights', traced(result(lambda weights, *_: weights.roll(4, -1)))),
)
planted(
    'RepVGG: the second bias is forgotten',
    TOY,
    ('mmdeploy_ext.models.rtdetr.layers:RepVggBlock.reparameterise', called(_bent)),
)
planted(
    'tokens: a margin of 0.05',
    TOY,
    (
        f'{DECODER}:Anchors.forward',
        traced(result(lambda right, *_: (right[0], right[1] * _margin(right[0])))),
    ),
)
planted(
    'tokens: boxes of another level',
    TOY,
    (
        f'{DECODER}:Anchors.forward',
        traced(result(lambda right, *_: (torch.cat([right[0][:, :2], right[0][:, 2:] + 0.05], 1), right[1]))),
    ),
)
planted(
    'tokens of the border count',
    TOY,
    (f'{DECODER}:Anchors.forward', traced(result(lambda right, *_: (right[0], torch.ones_like(right[1]))))),
)


def _margin(logits: torch.Tensor) -> torch.Tensor:
    """Return (N, 1), 1 where a centre is no nearer to a border than 0.05."""
    centre = logits[:, :2].sigmoid()
    return ((centre > 0.05) & (centre < 0.95)).all(1, keepdim=True).to(logits.dtype)


TOKENS = f'{DECODER}:RTDETRDecoder.tokens'
planted(
    'queries by their first class',
    TOY,
    (TOKENS, traced(result(lambda right, *_: (right[0], right[1][..., :1].expand_as(right[1]), right[2])))),
)
planted(
    'queries: the last map is left out',
    TOY,
    (TOKENS, traced(result(lambda right, *_: (right[0], _without_coarse(right[1]), right[2])))),
)
planted(
    'queries of the first image',
    TOY,
    (TOKENS, traced(result(lambda right, *_: (right[0], first_of_batch(right[1]), right[2])))),
)


def _without_coarse(logits: torch.Tensor) -> torch.Tensor:
    """Return logits with those of the last twentieth of the tokens, the coarse map, far below all."""
    count = logits.shape[1]
    return logits - 1e4 * (torch.arange(count) >= count - count // 21)[None, :, None]


planted(
    'tokens of the encoder have no positions',
    TOY,
    (f'{ENCODER}:Encoder.forward', traced(argument(2, torch.zeros_like))),
)
planted(
    'maps are enlarged bilinearly',
    TOY,
    (
        f'{ENCODER}:RTDETRHybridEncoder.top_down',
        traced(called(lambda original, self, maps: original(self, [maps[0], maps[1], _smooth(maps[2])]))),
    ),
)


def _smooth(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(features, 3, 1, 1) * 0.1 + features * 0.9


# --- raw outputs and their post-processing in numpy --------------------------------------------------
NUMPY = 'mmdeploy_ext.families.rtdetr.runtime:postprocess_image'
WRITTEN = f'{PACKAGE}.family:RtDetrFamily.postprocess_facts'
planted('metadata: max_per_img 59', TOY, (WRITTEN, settings(max_per_img=one_less)), form='raw')
planted('numpy: height and width swapped', TOY, (NUMPY, argument(2, lambda size: size[::-1])), form='raw')
planted('numpy: boxes as h w', TOY, (NUMPY, argument(1, lambda boxes: boxes[:, [0, 1, 3, 2]])), form='raw')
planted(
    'numpy: scores of queries',
    TOY,
    (
        NUMPY,
        argument(
            0,
            lambda logits: np.where(logits == logits.max(1, keepdims=True), logits, -20.0).astype(np.float32),
        ),
    ),
    form='raw',
)
planted(
    'raw: boxes in pixels',
    TOY,
    network(lambda logits, boxes, *rest: (logits, boxes * 320, *rest)),
    form='raw',
)
planted(
    'raw: tokens are those of the level',
    TOY,
    network(lambda logits, boxes, tokens: (logits, boxes, tokens % 100)),
    form='raw',
)
