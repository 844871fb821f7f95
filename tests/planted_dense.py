"""Faults of dense heads: ATSS, RetinaNet, YOLOX, SSD and CenterNet, in all forms of their graphs."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planted_boxes import (
    BOXES_OF,
    CLIP,
    OF_CLIPPING,
    OF_CODER,
    OF_PRIORS,
    OF_SUPPRESSION,
    SCORES_OF,
    entry,
    first_of_batch,
    five_percent,
    frozen_limit,
    one_less,
    one_more,
    one_percent_less,
    priors,
    swapped,
    wider,
)
from planting import argument, arguments, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

KINDS, FORMS = 'mmdeploy_ext.families.dense.heads', 'mmdeploy_ext.families.dense.forms'
POSTPROCESS = 'mmdeploy_ext.exporting.postprocess.bbox2d:DenseBoxPostprocess.forward'
DECODE, FULL = f'{FORMS}:Decode.forward', f'{FORMS}:DenseFullForm.forward'
FACTORS = 'mmdeploy_ext.families.parts.runtime.box_coders:factors_of'
WRITTEN = 'mmdeploy_ext.families.dense.family:DenseFamily.postprocess_facts'
SELECT = 'mmdeploy_ext.families.dense.runtime:postprocess_image'


def thresholds(**changes: Callable) -> Change:
    """Return a fault of the settings of `test_cfg`."""
    return f'{KINDS}:thresholds', settings(**changes)


def facts(**changes: Callable) -> Change:
    """Return a fault of what the graph is decoded by."""
    return f'{KINDS}:facts_of', settings(**changes)


def coder(**changes: Callable) -> Change:
    """Return a fault of the settings of the box coder."""
    return facts(coder=entry(**changes))


def head(**changes: Any) -> Change:
    """Return a fault of what a head is."""
    return f'{KINDS}:described', settings(**{name: lambda _, new=new: new for name, new in changes.items()})


def generator(**changes: Callable) -> Change:
    """Return a fault of attributes of the generator of priors."""

    def wrong(right: Any, *_: Any) -> Any:
        right = copy.copy(right)
        for name, change in changes.items():
            setattr(right, name, change(getattr(right, name)))
        return right

    return f'{KINDS}:generator_of', result(wrong)


def levels(boxes: Callable = list, scores: Callable = list, factors: Callable = list) -> Change:
    """Return a fault of decoded levels."""
    return DECODE, result(lambda right, *_: (boxes(right[0]), scores(right[1]), factors(right[2])))


def joined(self: Any, boxes: Any, scores: Any, factors: Any, *rest: Any) -> tuple:
    """Return the arguments of the post-processing with all levels in one."""
    return self, [torch.cat(boxes, 1)], [torch.cat(scores, 1)], [torch.cat(factors, 1)], *rest


def product(self: Any, boxes: Any, scores: Any, factors: Any, *rest: Any) -> tuple:
    """Return the arguments with scores that have the factor already, before the threshold and the choice."""
    scores = [score * factor[..., None] for score, factor in zip(scores, factors, strict=True)]
    return self, boxes, scores, [torch.ones_like(factor) for factor in factors], *rest


def multiplied(
    original: Callable, self: Any, boxes: Any, scores: Any, factors: Any, clip: Any, scale: Any, *border: Any
) -> Any:
    """Multiply boxes by the scale."""
    return original(self, boxes, scores, factors, clip, 1 / scale, *border)


def rescaled_first(
    original: Callable, self: Any, boxes: Any, scores: Any, factors: Any, clip: Any, scale: Any, *border: Any
) -> Any:
    """Divide boxes by the scale before they are clipped."""
    boxes = [level / scale[:, None] for level in boxes]
    return original(self, boxes, scores, factors, clip, torch.ones_like(scale), *border)


def half_pixel(
    original: Callable, self: Any, boxes: Any, scores: Any, factors: Any, clip: Any, scale: Any, *border: Any
) -> Any:
    """Move boxes where the scale is 1."""
    boxes = [level + 0.5 * (scale == 1).all().float() for level in boxes]
    return original(self, boxes, scores, factors, clip, scale, *border)


SCALE = 5
"""Place of `scale_factor` in the arguments of the post-processing."""
EVERY = 'atss retinanet yolox'
planted('score threshold x 1.05', EVERY, thresholds(score_thr=five_percent))
planted('score threshold x 1.2', 'atss', thresholds(score_thr=lambda least: least * 1.2))
planted('IoU threshold x 1.05', EVERY, thresholds(iou_threshold=five_percent))
planted('IoU threshold x 0.95', 'atss', thresholds(iou_threshold=lambda most: most * 0.95))
planted('suppression across classes', EVERY, thresholds(class_agnostic=lambda right: True))
planted('max_per_img 99', 'atss retinanet', thresholds(max_per_img=one_less))
planted('max_per_img 101', 'atss', thresholds(max_per_img=one_more))
planted('max_per_img 100 where there is no limit', 'yolox', thresholds(max_per_img=lambda most: 100))
planted('nms_pre 50', 'atss', thresholds(nms_pre=lambda most: 50))
planted('nms_pre 990', 'atss retinanet', thresholds(nms_pre=one_percent_less))
planted('nms_pre without a limit', 'atss', thresholds(nms_pre=lambda most: -1))
planted('nms_pre of all levels together', 'atss', (POSTPROCESS, arguments(joined)))
planted('as many of a level as the traced size has', 'atss', frozen_limit)
for _name, _change in (OF_SUPPRESSION | OF_CLIPPING | OF_PRIORS | OF_CODER).items():
    planted(_name, 'atss', _change)
planted('boxes clipped at 600 px', 'atss', (CLIP, result(lambda boxes, *_: boxes.clamp(max=600))))
planted('boxes are clipped', 'yolox', facts(clip_border=lambda right: True))
planted('clipped after rescaling', 'atss', (POSTPROCESS, called(rescaled_first)))
planted(
    'without img_shape boxes are clipped to a multiple of 64',
    'atss',
    (
        FULL,
        argument(1, lambda image: image[:, :, : image.shape[2] // 64 * 64, : image.shape[3] // 64 * 64]),
    ),
)
planted('without scale_factor boxes are a half pixel off', 'atss', (POSTPROCESS, called(half_pixel)))
planted('scale_factor as h w h w', 'atss yolox', (POSTPROCESS, argument(SCALE, swapped)))
planted('boxes are multiplied by scale_factor', 'atss', (POSTPROCESS, called(multiplied)))
planted(
    'one scale for width and height',
    'atss',
    (POSTPROCESS, argument(SCALE, lambda scale: scale[:, :1].expand_as(scale))),
)
planted(
    "every third image has the first one's scale_factor",
    'atss',
    (POSTPROCESS, argument(SCALE, lambda scale: scale[torch.arange(scale.shape[0]) % 2])),
)
planted('padding counts as the image', 'atss', (FULL, argument(2, lambda shape: shape * 0)))
planted(
    'the fourth level is left out',
    'atss',
    levels(scores=lambda scores: [*scores[:3], scores[3] * 0, *scores[4:]]),
)
planted(
    'the last level is left out',
    'atss retinanet ssd',
    levels(scores=lambda scores: [*scores[:-1], scores[-1] * 0]),
)
planted(
    'the last cell of the last level is left out',
    'retinanet yolox',
    levels(scores=lambda scores: [*scores[:-1], torch.cat([scores[-1][:, :-1], scores[-1][:, -1:] * 0], 1)]),
)
planted(
    'the first cell of the first level is left out',
    'retinanet yolox',
    levels(scores=lambda scores: [torch.cat([scores[0][:, :1] * 0, scores[0][:, 1:]], 1), *scores[1:]]),
)
for _share in (1.02, 0.98):
    planted(
        f'score threshold x {_share}',
        'retinanet',
        thresholds(score_thr=lambda least, share=_share: least * share),
    )
planted(
    'anchors of the fourth level a quarter stride off',
    'atss',
    priors(lambda cells, size, level: cells + (16 if level == 3 else 0)),
)
planted('anchors of whole pixels', 'retinanet', priors(lambda cells, size, level: cells.round()))
planted("a level's stride", 'retinanet', generator(strides=lambda right: [(9, 9), *right[1:]]))
planted(
    "a prior's size",
    'retinanet',
    generator(
        base_sizes=lambda right: [right[0] * 1.1, *right[1:]],
        base_anchors=lambda right: [right[0] * 1.1, *right[1:]],
    ),
)
planted("a coder's deviation", 'atss retinanet ssd', coder(stds=wider))
planted("a coder's mean", 'atss', coder(means=lambda means: [means[0] + 0.02, *means[1:]]))
planted('box sizes bounded by e^0.7', 'atss', coder(wh_ratio_clip=lambda ratio: 0.5))
planted('box sizes bounded by e^0.1', 'ssd', coder(wh_ratio_clip=lambda ratio: math.exp(-0.1)))
planted('no bound of box sizes', 'retinanet', coder(wh_ratio_clip=lambda ratio: 1e-9))
planted('centerness is forgotten', 'atss', levels(factors=lambda right: [torch.ones_like(x) for x in right]))
planted(
    'centerness without a sigmoid',
    'atss',
    levels(factors=lambda right: [torch.logit(x, 1e-6).clamp(0, 1) for x in right]),
)
planted(
    'centerness rounded to float16', 'atss', levels(factors=lambda right: [x.half().float() for x in right])
)
planted('the root of score times centerness', 'atss', head(root=True))
planted('the threshold looks at score times centerness', 'atss', (POSTPROCESS, arguments(product)))
planted('the threshold looks at class scores alone', 'yolox', head(judged='class'))
planted('all classes of a prior, not the best', 'yolox', head(choose='all'))
planted('scores of the first image', 'atss', levels(scores=lambda right: [first_of_batch(x) for x in right]))
planted('boxes of the first image', 'atss', levels(boxes=lambda right: [first_of_batch(x) for x in right]))
planted('classes in the reverse order', EVERY, (SCORES_OF, result(lambda scores, *_: scores.flip(-1))))
planted(
    'two classes change places',
    'atss',
    (SCORES_OF, result(lambda scores, *_: scores[..., [1, 0, *range(2, scores.shape[-1])]])),
)
planted('objectness left out', 'yolox', (FACTORS, result(lambda factors, *_: torch.ones_like(factors))))
planted("a level's stride in the coder", 'yolox', coder(strides=lambda right: [right[0] + 1, *right[1:]]))
planted('points in the middle of cells', 'yolox', priors(lambda cells, size, level: cells + 4 * 2**level))
planted('sizes of half a pixel more', 'yolox', (BOXES_OF, result(lambda boxes, *_: boxes * 1.005)))


def _first_is_background(original: Callable, xp: Any, facts: Any, rows: Any) -> Any:
    return rows['cls_score'].softmax(-1)[..., 1:]


planted('the background first', 'ssd', (SCORES_OF, called(_first_is_background)))
planted('score threshold x 1.05', 'ssd', thresholds(score_thr=five_percent))
planted('IoU threshold x 1.05', 'ssd', thresholds(iou_threshold=five_percent))
planted('max_per_img 198', 'ssd', thresholds(max_per_img=one_percent_less))
planted('nms_pre 297', 'ssd', thresholds(nms_pre=one_percent_less))
planted(
    'softmax without a background',
    'ssd',
    (SCORES_OF, called(lambda original, xp, facts, rows: rows['cls_score'][..., :-1].softmax(-1))),
)
BORDER = 6
planted('the border left in', 'centernet', (POSTPROCESS, argument(BORDER, lambda border: None)))
planted('the border as x y', 'centernet', (POSTPROCESS, argument(BORDER, swapped)))
planted(
    'the border is scaled, too',
    'centernet',
    (POSTPROCESS, arguments(lambda *a: (*a[:BORDER], a[BORDER] * a[SCALE][:, :2]))),
)
planted('no peaks', 'centernet', facts(head=entry(peaks=lambda side: 1)))
planted('peaks of five by five cells', 'centernet', facts(head=entry(peaks=lambda side: 5)))
planted('cells of 5 pixels', 'centernet', coder(strides=lambda right: [5]))
planted('topk one less', 'centernet', thresholds(nms_pre=one_less, max_per_img=one_less))
planted('topk 1 % less', 'centernet', thresholds(nms_pre=one_percent_less, max_per_img=one_percent_less))
planted('classes in the reverse order', 'centernet', (SCORES_OF, result(lambda s, *_: s.flip(-1))))
planted(
    'offsets of centres left out',
    'centernet',
    (
        BOXES_OF,
        called(
            lambda original, xp, facts, rows, *rest: original(
                xp, facts, dict(wh=rows['wh'], offset=rows['offset'] * 0), *rest
            )
        ),
    ),
)
planted(
    'sizes as h w',
    'centernet',
    (
        BOXES_OF,
        called(
            lambda original, xp, facts, rows, *rest: original(
                xp, facts, dict(wh=rows['wh'].flip(-1), offset=rows['offset']), *rest
            )
        ),
    ),
)

# --- what other runtimes read: the facts in the metadata, and the post-processing in numpy --------------


def written(**changes: Callable) -> Change:
    """Return a fault of what the metadata say."""
    return WRITTEN, settings(**changes)


for _name, _change in {
    'metadata: score threshold x 1.05': written(score_thr=five_percent),
    'metadata: IoU threshold x 1.05': written(iou_threshold=five_percent),
    'metadata: nms_pre 50': written(nms_pre=lambda most: 50),
    'metadata: nms_pre 990': written(nms_pre=one_percent_less),
    'metadata: max_per_img 99': written(max_per_img=one_less),
    'metadata: suppression across classes': written(class_agnostic=lambda right: True),
    'metadata: boxes are not clipped': written(clip_border=lambda right: False),
    'metadata: clipped a pixel inside': written(head=entry(clip_inset=lambda inset: 1.0)),
    'metadata: the threshold looks at the product': written(head=entry(judged=lambda right: 'product')),
}.items():
    planted(_name, 'atss', _change, form='decode')
for _name, _change in {
    "metadata: a coder's deviation": written(coder=entry(stds=wider)),
    "metadata: a level's stride": written(strides=lambda right: [*right[:-1], 127]),
    'metadata: anchors of whole pixels': written(
        base_anchors=lambda right: [[[round(x * 1.02) for x in one] for one in level] for level in right]
    ),
    'metadata: no sigmoid of scores': written(head=entry(activation=lambda right: 'none')),
    'metadata: box sizes bounded by e^0.7': written(coder=entry(wh_ratio_clip=lambda ratio: 0.5)),
}.items():
    planted(_name, 'atss', _change, form='raw')
NUMPY_NMS = 'mmdeploy_ext.runtime.detections:nms'
planted(
    'numpy: overlaps of boxes that are a pixel wider',
    'atss',
    (NUMPY_NMS, argument(0, lambda boxes: boxes + np.float32([0, 0, 1, 1]))),
    form='decode',
)
planted(
    "numpy: clipped to width and height in each other's place",
    'atss',
    (SELECT, argument(2, lambda size: size[::-1])),
    form='decode',
)
planted(
    'numpy: scale_factor as h w h w',
    'atss',
    (SELECT, argument(3, lambda scale: scale[[1, 0, 3, 2]])),
    form='decode',
)
planted(
    'numpy: nms_pre of all levels together',
    'atss',
    (SELECT, argument(1, lambda sizes: [sum(sizes)])),
    form='decode',
)
planted(
    'numpy: priors half a stride off',
    'atss',
    (
        'mmdeploy_ext.families.dense.runtime:priors_of',
        result(lambda levels, *_: [one + 4 * 2**level for level, one in enumerate(levels)]),
    ),
    form='raw',
)

# --- graphs with a limit of candidates --------------------------------------------------------------

CAPPED = dict(dynamic=False, max_candidates=1000)
SORTED = 'mmdeploy_ext.exporting.ops.nms:nms_of_sorted'
planted('capped: IoU threshold x 1.05', 'atss', (SORTED, argument(1, five_percent)), **CAPPED)
planted(
    'capped: no suppression by boxes that were suppressed',
    'atss',
    (
        SORTED,
        called(
            lambda original, boxes, most: ~(original.__globals__['pairwise_iou'](boxes).triu(1) > most).any(1)
        ),
    ),
    **CAPPED,
)
planted(
    'capped: candidates are those that were kept',
    'atss',
    (
        'mmdeploy_ext.exporting.postprocess.suppression:Suppression.__call__',
        result(lambda found, *_: (*found[:2], (found[1] >= 0).sum(1))),
    ),
    **CAPPED,
)
