"""Faults of masks of queries: QueryInst, whose queries have regions, and the instances of Mask2Former."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planted_boxes import CLIP_SIZE, first_of_batch, swapped
from planted_masks import IN_GRAPH, pasted, shifted
from planted_query import ATTEND, SHARES, _aligned, sampled
from planted_two_stage import DECODED, LEVELS, POOL, layer
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

PARTS = 'mmdeploy_ext.families.parts'
PACKAGE, MASK_HEADS = 'mmdeploy_ext.families.query', 'mmdeploy_ext.families.parts.mask_heads'
REGIONS, MASKS = f'{PACKAGE}.regions', f'{PACKAGE}.masks'
REGIONS_FORM, INTERACT = f'{REGIONS}:RegionsFullForm.forward', f'{REGIONS}:interact'
BEST = f'{PACKAGE}.postprocess:best_pairs'
CODER = 'mmdeploy_ext.families.parts.regions:coder_of'
THRESHOLD = 'mmdeploy_ext.families.parts.mask_heads:threshold'
QUERY = 'queryinst'


def best(change: Callable) -> Change:
    """Return a fault of the best pairs: of scores, classes and queries (B, n)."""
    return BEST, result(lambda right, *_: change(*right))


def fewer(scores: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return pairs of which the last one is the one before it again."""
    rows = torch.arange(scores.shape[1]).clamp(max=scores.shape[1] - 2)
    return tuple(one[:, rows] for one in (scores, *others))


def pairs(tensor: torch.Tensor) -> torch.Tensor:
    """Return queries (B, Q, ...) with each two in each other's place."""
    return tensor[:, torch.arange(tensor.shape[1]).unflatten(0, (-1, 2)).flip(1).flatten()]


# --- QueryInst --------------------------------------------------------------------------------------
planted('max_per_img: the last result is the one before it', QUERY, best(fewer))
planted('labels begin at 1', QUERY, best(lambda scores, labels, query: (scores, (labels + 1) % 6, query)))
planted('classes as queries', QUERY, best(lambda scores, labels, query: (scores, labels, labels)))
planted('scores rounded to float16', QUERY, best(lambda scores, *rest: (scores.half().float(), *rest)))
planted(
    'scores by a softmax',
    QUERY,
    (REGIONS_FORM, argument(2, lambda logits: torch.logit(logits.softmax(2), 1e-6))),
)
planted('scale_factor as h w h w', QUERY, (REGIONS_FORM, argument(1, swapped)))
planted('scale_factor of the first image', QUERY, (REGIONS_FORM, argument(1, first_of_batch)))
planted('boxes of the query beside', QUERY, (REGIONS_FORM, argument(3, lambda boxes: boxes.roll(1, 1))))
planted('masks of another query', QUERY, (INTERACT, result(lambda right, *_: (*right[:3], pairs(right[3])))))
planted(
    'masks of the next class',
    QUERY,
    (f'{MASK_HEADS}:predicted_class_only', argument(1, lambda labels: (labels + 1) % 6)),
)
planted(
    'masks of classes by query',
    QUERY,
    (f'{MASK_HEADS}:predicted_class_only', argument(1, lambda labels: labels.roll(1))),
)
planted(
    'queries that do not look at each other',
    QUERY,
    (f'{PARTS}.query_networks:attend_to', result(lambda right, *_: right * 0)),
)
planted(
    'queries of the first stage in all',
    QUERY,
    (
        INTERACT,
        called(
            lambda original, head, features, query: (
                *(right := original(head, features, query))[:2],
                query,
                right[3],
            )
        ),
    ),
)
planted(
    'learned boxes relative to the padded input', QUERY, (CLIP_SIZE, argument(1, lambda shape: shape * 0))
)
planted('learned boxes relative to the first image', QUERY, (CLIP_SIZE, argument(1, first_of_batch)))
planted('learned boxes as h w', QUERY, (CLIP_SIZE, argument(1, swapped)))
planted(
    'boxes that no stage moves',
    QUERY,
    (DECODED, called(lambda original, head, boxes, *_: (boxes[:, :, None], None))),
)
planted(
    "a coder's deviation", QUERY, (CODER, settings(stds=lambda stds: [*stds[:2], stds[2] * 1.05, stds[3]]))
)
planted('no bound of sizes', QUERY, (CODER, settings(wh_ratio_clip=lambda ratio: 1e-9)))
planted('sizes bounded by e^0.1', QUERY, (CODER, settings(wh_ratio_clip=lambda ratio: 0.9)))
planted('regions: not aligned', QUERY, layer(aligned=lambda right: False))
planted('regions: sampling ratio 1', QUERY, layer(sampling_ratio=lambda right: 1))
planted(
    'regions: the last level is left out', QUERY, (LEVELS, result(lambda levels, *_: levels.clamp(max=2)))
)
planted(
    'regions: the first level is left out', QUERY, (LEVELS, result(lambda levels, *_: levels.clamp(min=1)))
)
planted('regions: maps of the first image', QUERY, (POOL, argument(3, lambda images: images * 0)))
planted(
    'regions of another query',
    QUERY,
    ('mmdeploy_ext.families.parts.regions:Regions.features', argument(2, pairs)),
)
planted('mask threshold x 1.05', QUERY, (THRESHOLD, result(lambda least, *_: least * 1.05)))
planted('pasting: half a pixel off', QUERY, pasted(lambda masks, boxes, *rest: (masks, boxes + 0.5, *rest)))
planted(
    'pasting: boxes of whole pixels', QUERY, pasted(lambda masks, boxes, *rest: (masks, boxes.round(), *rest))
)
planted(
    'pasting in the graph: half a pixel off', QUERY, (IN_GRAPH, argument(1, shifted(0.5))), paste_masks=True
)
# --- Mask2Former ------------------------------------------------------------------------------------
FORMER, FORM = 'mask2former', f'{MASKS}:MasksFullForm.forward'
RESIZING, MASKS_OF = 'mmdeploy_ext.exporting.postprocess.mask_resize:resizing_of', f'{MASKS}:masks_of'
PICK = 'mmdeploy_ext.exporting.postprocess.soft_masks:pick_rows'
DECODE, PIXELS = f'{MASKS}:Mask2FormerNetwork.decode', f'{MASKS}:Mask2FormerNetwork.pixels'
planted('Mask2Former: the last result is the one before it', FORMER, best(fewer))
planted(
    'Mask2Former: max_per_image 49', FORMER, (f'{MASKS}:max_per_image', result(lambda most, *_: most - 1))
)
planted(
    'Mask2Former: labels begin at 1',
    FORMER,
    best(lambda scores, labels, query: (scores, (labels + 1) % 6, query)),
)
planted(
    'Mask2Former: masks of the query beside',
    FORMER,
    best(lambda scores, labels, query: (scores, labels, (query + 1) % 40)),
)
planted(
    'Mask2Former: scores without those of masks',
    FORMER,
    (
        FORM,
        called(
            lambda original, self, shape, size, logits, masks: _class_scores(
                original(self, shape, size, logits, masks), logits, self
            )
        ),
    ),
)
planted(
    'Mask2Former: scores by a sigmoid',
    FORMER,
    (FORM, argument(3, lambda logits: torch.cat([logits[..., :-1], torch.zeros_like(logits[..., -1:])], 2))),
)
planted(
    'Mask2Former: the column of no class first',
    FORMER,
    (FORM, argument(3, lambda logits: logits.roll(-1, 2))),
)
planted('Mask2Former: mask threshold 0.05 as logit', FORMER, (FORM, argument(4, lambda masks: masks - 0.05)))
planted(
    'Mask2Former: masks larger than 0.5, of logits', FORMER, (FORM, argument(4, lambda masks: masks - 0.5))
)
planted('Mask2Former: padding not cut', FORMER, (FORM, argument(1, lambda shape: shape * 0)))
planted('Mask2Former: content of the first image', FORMER, (FORM, argument(1, first_of_batch)))
planted('Mask2Former: content as w h', FORMER, (FORM, argument(1, swapped)))
planted('Mask2Former: masks of the size of the input', FORMER, (FORM, argument(2, lambda size: size * 0)))
planted('Mask2Former: width and height of masks change places', FORMER, (FORM, argument(2, swapped)))
planted('Mask2Former: masks of the first image', FORMER, (PICK, argument(0, first_of_batch)))
planted(
    'Mask2Former: masks a cell off',
    FORMER,
    (RESIZING, result(lambda right, *_: (right[0].roll(1, 2), right[1]))),
)
planted(
    'Mask2Former: resized once, from a quarter to the original',
    FORMER,
    (
        RESIZING,
        called(
            lambda original, maps, shape, size, ratio: original(
                maps, (shape / ratio).floor() * ratio, size, ratio
            )
        ),
    ),
)
planted('Mask2Former: points: corners of maps are aligned', FORMER, (ATTEND, called(_aligned)))
planted(
    'Mask2Former: points: offsets as y x',
    FORMER,
    sampled(lambda points, offsets, sizes: (points, offsets.flip(-1), sizes)),
)
planted(
    'Mask2Former: points: weights of the level beside',
    FORMER,
    (SHARES, result(lambda weights, *_: weights.roll(4, -1))),
)
planted(
    'Mask2Former: levels in the reverse order',
    FORMER,
    (
        DECODE,
        called(
            lambda original, self, sources, features, levels: original(
                self, sources[::-1], features, levels[::-1]
            )
        ),
    ),
)
planted(
    'Mask2Former: queries look outside of their masks',
    FORMER,
    (MASKS_OF, result(lambda masks, *_: _where_small(masks))),
)
planted(
    'Mask2Former: features of masks of the first image',
    FORMER,
    (PIXELS, result(lambda right, *_: (right[0], first_of_batch(right[1])))),
)
planted(
    'Mask2Former: positions a cell off',
    FORMER,
    (f'{MASKS}:Mask2FormerNetwork.level_positions', result(lambda places, *_: places.roll(1, 1))),
)
planted(
    'Mask2Former: results of classes that score less than 0.05 are dropped',
    FORMER,
    (
        FORM,
        result(
            lambda right, *_: (
                right[0] & (right[1] >= 0.05)[..., None, None],
                right[1] * (right[1] >= 0.05),
                torch.where(right[1] >= 0.05, right[2], -torch.ones_like(right[2])),
            )
        ),
    ),
)


def _class_scores(results: tuple, logits: torch.Tensor, self: Any) -> tuple:
    """Return results whose scores are those of classes, in their order."""
    masks, scores, labels = results
    best_scores = logits.softmax(2)[..., :-1].flatten(1).topk(scores.shape[1], 1)[0]
    return masks, torch.where(scores > 0, best_scores, scores), labels


def _where_small(masks: torch.Tensor) -> torch.Tensor:
    """Return logits of masks that are the same at a quarter of the input, and lower by 0.3 elsewhere."""
    return masks - 0.3


FORMER_EMPTY = result(lambda right, *_: (right[0], right[1], right[2].clamp(min=0)))
planted('Mask2Former: empty masks have the label 0', FORMER, (FORM, FORMER_EMPTY))
