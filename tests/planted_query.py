"""Faults of detectors of queries: DETR, Deformable DETR in two stages, and DINO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planted_boxes import first_of_batch, swapped
from planting import argument, called, planted, result, traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

PARTS = 'mmdeploy_ext.families.parts'
PACKAGE = 'mmdeploy_ext.families.query'
NETWORKS, POST, PADDING = f'{PARTS}.query_networks', f'{PACKAGE}.postprocess', f'{PARTS}.padding'
FORM, BEST, MOST = f'{POST}:QueryFullForm.forward', f'{POST}:best_pairs', f'{POST}:max_per_img'
ATTENTION = 'mmdeploy_ext.exporting.ops.attention'
LOCATIONS, ATTEND, SHARES = (
    f'{ATTENTION}:{name}' for name in ('sampling_locations', 'attend_maps', 'point_weights')
)
NETWORK, REFERENCE = f'{NETWORKS}:QueryNetwork.forward', f'{NETWORKS}:reference_points'
LEVEL, POSITIONS = f'{PADDING}:PaddedMap', f'{PADDING}:SinePositions.forward'
XYXY = 'mmdeploy_ext.models.rtdetr.boxes:cxcywh_to_xyxy'
LAYERS = f'{PARTS}.query_networks'


def of_levels(name: str, change: Callable) -> Change:
    """Return a fault of what a level says of its cells: `inside` or `ratios`."""
    return f'{LEVEL}.{name}', result(lambda right, *_: change(right))


def results(place: int, change: Callable) -> Change:
    """Return a fault of an argument of the post-processing: img_shape 2, scale 3, logits 4, boxes 5."""
    return FORM, argument(place, change)


def sampled(change: Callable) -> Change:
    """Return a fault of where attention samples: change of points, offsets and sizes of maps."""
    return LOCATIONS, called(lambda original, *given: original(*change(*given)))


def fours(tensor: torch.Tensor) -> torch.Tensor:
    """Return queries (B, Q, ...) with the first two of each four in each other's place."""
    order = torch.arange(tensor.shape[1]).unflatten(0, (-1, 4))[:, [1, 0, 2, 3]].flatten()
    return tensor[:, order]


def _aligned(original: Callable, values: Any, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    levels = [
        torch.nn.functional.grid_sample(
            value, locations[:, :, :, level].transpose(1, 2).flatten(0, 1), align_corners=True
        )
        for level, value in enumerate(values)
    ]
    return (torch.cat(levels, -1) * weights).sum(-1)


def _border(original: Callable, values: Any, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return original(values, locations.clamp(-1, 1), weights)


TWO, DETR, DINO = 'deformable_detr', 'detr', 'dino'
BOTH, EVERY = f'{TWO} {DETR}', f'{TWO} {DETR} {DINO}'
# --- results ----------------------------------------------------------------------------------------
planted('max_per_img 39', TWO, (MOST, result(lambda most, *_: most - 1)))
planted('max_per_img 41', TWO, (MOST, result(lambda most, *_: most + 1)))
planted('max_per_img one less', DETR, (MOST, result(lambda most, *_: most - 1)))
planted(
    'the best class of each query alone',
    TWO,
    (
        BEST,
        argument(0, lambda scores: torch.where(scores == scores.amax(2, keepdim=True), scores, scores * 0.5)),
    ),
)
planted('classes as queries', TWO, (BEST, result(lambda right, *_: (right[0], right[1], right[1]))))
planted(
    'labels begin at 1',
    TWO,
    (BEST, result(lambda right, *_: (right[0], (right[1] + 1).clamp(max=5), right[2]))),
)
planted(
    'two classes change places',
    TWO,
    (BEST, result(lambda right, *_: (right[0], torch.where(right[1] < 2, 1 - right[1], right[1]), right[2]))),
)
planted('scores by a softmax', TWO, results(4, lambda logits: torch.logit(logits.softmax(2), 1e-6)))
planted(
    'scores rounded to float16',
    TWO,
    results(4, lambda logits: torch.logit(logits.sigmoid().half().float(), 1e-6)),
)
planted('the background first', DETR, results(4, lambda logits: logits.roll(-1, 2)))
planted(
    'softmax without the background',
    DETR,
    results(4, lambda logits: torch.cat([logits[..., :-1], logits[..., -1:] - 1e4], 2)),
)
planted('boxes of the query beside', BOTH, results(5, lambda boxes: boxes.roll(1, 1)))
planted('a query swapped', TWO, results(5, fours))
planted('boxes relative to the padded input', BOTH, results(2, lambda shape: shape * 0))
planted('img_shape as w h', TWO, results(2, swapped))
planted('img_shape of the first image', BOTH, results(2, first_of_batch))
planted('scale_factor as h w h w', BOTH, results(3, swapped))
planted('scale_factor of the first image', TWO, results(3, first_of_batch))
planted('boxes as h w', TWO, results(5, lambda boxes: boxes[..., [0, 1, 3, 2]]))
planted(
    'boxes that begin at their centre',
    TWO,
    (XYXY, called(lambda original, boxes: torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1))),
)
planted(
    'boxes are not clipped',
    BOTH,
    (
        FORM,
        called(
            lambda original, self, image, shape, scale, logits, boxes: _unclipped(
                original, self, image, shape, scale, logits, boxes
            )
        ),
    ),
)
planted(
    'boxes clipped a pixel inside',
    TWO,
    (
        FORM,
        called(
            lambda original, self, image, shape, scale, logits, boxes: _inside(
                original, self, image, shape, scale, logits, boxes
            )
        ),
    ),
)


def _unclipped(
    original: Callable, self: Any, image: Any, shape: Any, scale: Any, logits: Any, boxes: Any
) -> Any:
    """Give a part of the boxes that lies beyond the image, too."""
    shrunk = torch.cat([boxes[..., :2] * 0.25 + 0.375, boxes[..., 2:] * 0.25], 2)
    dets, labels = original(self, image, shape, scale, logits, shrunk)
    size = torch.tensor([image.shape[2], image.shape[3]]).to(shape)[None]
    whole = torch.where(shape > 0, shape, size).flip(1).repeat(1, 2)[:, None] / scale[:, None]
    return torch.cat([(dets[..., :4] - 0.375 * whole) * 4, dets[..., 4:]], 2), labels


def _inside(
    original: Callable, self: Any, image: Any, shape: Any, scale: Any, logits: Any, boxes: Any
) -> Any:
    dets, labels = original(self, image, shape, scale, logits, boxes)
    size = torch.tensor([image.shape[2], image.shape[3]]).to(shape)[None]
    whole = torch.where(shape > 0, shape, size).flip(1).repeat(1, 2)[:, None]
    return torch.cat([torch.minimum(dets[..., :4], (whole - 1) / scale[:, None]), dets[..., 4:]], 2), labels


planted(
    'without img_shape boxes are relative to 320 pixels',
    TWO,
    results(2, lambda shape: torch.where(shape > 0, shape, torch.full_like(shape, 320.0))),
)
# --- padding and positions --------------------------------------------------------------------------
planted('padding is looked at', BOTH, of_levels('inside', lambda inside: inside * 0 + 1))
planted('padding: its shares ignored', TWO, of_levels('ratios', lambda ratios: ratios * 0 + 1))
planted('padding: shares as height and width', TWO, of_levels('ratios', swapped))
planted('padding of the first image', BOTH, (NETWORK, argument(2, first_of_batch)))
planted('positions of the padded input', BOTH, (NETWORK, argument(2, lambda shape: shape * 0)))
planted(
    'positions: the period of sine and cosine 1 % off',
    BOTH,
    (f'{PADDING}:waves', argument(1, lambda periods: periods * 1.01)),
)
planted(
    'positions: x before y',
    BOTH,
    (POSITIONS, result(lambda right, *_: torch.cat(right.chunk(2, 2)[::-1], 2))),
)
planted(
    'positions: cells from 0 on',
    BOTH,
    (
        f'{PADDING}:SinePositions.forward',
        called(lambda original, self, level: original(self, _from_0(level))),
    ),
)


def _from_0(level: Any) -> Any:
    import copy
    import dataclasses

    level = copy.copy(level)
    level.rows, level.columns = (
        dataclasses.replace(line, place=line.place - 1) for line in (level.rows, level.columns)
    )
    return level


# --- attention to points ----------------------------------------------------------------------------
planted('points: corners of maps are aligned', TWO, (ATTEND, called(_aligned)))
planted('points beyond a map are at its border', TWO, (ATTEND, called(_border)))
planted('points: weights of the level beside', TWO, (SHARES, result(lambda weights, *_: weights.roll(4, -1))))
planted('points: weights that do not sum to one', TWO, (SHARES, result(lambda weights, *_: weights * 1.02)))
planted('points: reference of another level', TWO, sampled(lambda points, *rest: (points.roll(1, 2), *rest)))
planted(
    'points: offsets 5 % longer', TWO, sampled(lambda points, offsets, sizes: (points, offsets * 1.05, sizes))
)
planted(
    'points: offsets as y x', TWO, sampled(lambda points, offsets, sizes: (points, offsets.flip(-1), sizes))
)
planted(
    'points: offsets of the level beside',
    TWO,
    sampled(lambda points, offsets, sizes: (points, offsets.roll(1, 3), sizes)),
)
planted(
    'points: sizes of maps as w h',
    TWO,
    sampled(lambda points, offsets, sizes: (points, offsets, sizes.flip(1))),
)
planted(
    'points: a cell off',
    TWO,
    (
        LOCATIONS,
        called(
            lambda original, points, offsets, sizes: (
                original(points, offsets, sizes) + 1 / sizes.flip(1)[:, None]
            )
        ),
    ),
)
planted(
    'points: reference of encoder cells at their upper left',
    TWO,
    (REFERENCE, result(lambda points, levels, *_: points - _half_cells(levels))),
)


def _half_cells(levels: Any) -> torch.Tensor:
    """Return half a cell of its own level for every token, (1, S, 1, 2)."""
    halves = []
    for level in levels:
        half = torch.stack([0.5 / level.columns.cells, 0.5 / level.rows.cells])
        halves.append(half.expand(level.inside().shape[1], 2))
    return torch.cat(halves)[None, :, None]


# --- queries of the best tokens ---------------------------------------------------------------------
planted('tokens: sides of another level', TWO, (f'{NETWORKS}:SIDE', lambda side: 2 * side))
planted('tokens: a border of 0.05', TWO, (f'{NETWORKS}:BORDER', lambda border: 0.05))
planted(
    'tokens by their last class',
    TWO,
    (f'{NETWORKS}:DeformableNetwork.token_scores', called(lambda original, self, logits: logits[..., -1])),
)
planted(
    'tokens in the reverse order',
    TWO,
    (
        f'{NETWORKS}:DeformableNetwork.token_scores',
        called(lambda original, self, logits: -original(self, logits)),
    ),
)
planted(
    'tokens: the last level is left out',
    TWO,
    (
        f'{NETWORKS}:DeformableNetwork.token_scores',
        called(lambda original, self, logits: _without_coarse(original(self, logits))),
    ),
)


planted(
    'tokens: a border of 0.04',
    TWO,
    (f'{NETWORKS}:BORDER', lambda border: 0.04),  # of 192x256 px: the outer columns of the first level
)
planted(
    'tokens: the first is left out',
    TWO,
    (f'{NETWORKS}:DeformableNetwork.token_scores', result(lambda scores, *_: _lowered(scores, 0))),
)
planted(
    'tokens: the last is left out',
    TWO,
    (f'{NETWORKS}:DeformableNetwork.token_scores', result(lambda scores, *_: _lowered(scores, -1))),
)


def _lowered(scores: torch.Tensor, place: int) -> torch.Tensor:
    """Return scores (B, S) with that of one token far below all."""
    places = torch.arange(scores.shape[1]) == place % scores.shape[1]
    return torch.where(places, scores - 1e4, scores)


def _without_coarse(scores: torch.Tensor) -> torch.Tensor:
    """Return scores with those of the last 20 tokens, the coarsest, far below all."""
    return torch.where(torch.arange(scores.shape[1]) < scores.shape[1] - 20, scores, scores - 1e4)


planted('places of queries: another temperature', TWO, (f'{NETWORKS}:TEMPERATURE', lambda temperature: 1000))
planted(
    'places of queries in turns of pi',
    TWO,
    (
        f'{PADDING}:waves',
        called(
            lambda original, values, periods: original(
                values * (0.5 if values.shape[-1] == 4 else 1.0), periods
            )
        ),
    ),
)
# --- DETR -------------------------------------------------------------------------------------------
planted(
    'queries have no places in the decoder', DETR, (f'{LAYERS}:decode_queries', argument(3, torch.zeros_like))
)
planted(
    'tokens have no positions in the decoder',
    DETR,
    (f'{LAYERS}:decode_queries', argument(2, torch.zeros_like)),
)
planted(
    'tokens have no positions in the encoder',
    DETR,
    (f'{LAYERS}:encode_tokens', argument(2, torch.zeros_like)),
)
planted(
    'queries do not look at each other',
    DETR,
    (
        f'{LAYERS}:among_themselves',
        result(lambda attend, *_: lambda attention, tokens: attend(attention, tokens) * 0),
    ),
)
# --- DINO, whose decoder both sides have ------------------------------------------------------------
for _name, _change in {
    'DINO: height before width': (
        f'{NETWORKS}:DinoNetwork.position_in_layer',
        argument(2, lambda points: points[..., [1, 0, 3, 2]]),
    ),
    'DINO: tokens by their first class': (
        f'{NETWORKS}:DinoNetwork.token_scores',
        called(lambda original, self, logits: logits[..., 0]),
    ),
    'DINO: no norm after the last layer': (
        f'{NETWORKS}:DinoNetwork.output_queries',
        called(lambda original, self, query: query),
    ),
    'DINO: queries of the first image': (NETWORK, argument(2, first_of_batch)),
}.items():
    planted(_name, DINO, (_change[0], traced(_change[1])))
planted('DINO: boxes of the query beside', DINO, results(5, lambda boxes: boxes.roll(1, 1)))
planted('DINO: points: corners of maps are aligned', DINO, (ATTEND, traced(called(_aligned))))
