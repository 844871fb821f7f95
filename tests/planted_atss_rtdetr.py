"""Faults of post-processing and decoding of ATSS, and of what RT-DETR's export alone runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planting import arguments, planted, result, settings, when_traced

if TYPE_CHECKING:
    from collections.abc import Callable

BOX = 'mmdeploy_ext.exporting.postprocess.bbox2d'
DENSE, FULL = f'{BOX}:DenseBoxPostprocess', 'projects.mmdet_plugin.dense.forms:FullForm.forward'
OFFSETS = 'mmdeploy_ext.exporting.postprocess.suppress:class_offsets'
DECODE = 'projects.mmdet_plugin.dense.forms'
NMS = f'{DECODE}:thresholds'
LEVEL = f'{DECODE}:Decode._boxes'
planted('score threshold x 1.2', 'atss', (NMS, settings(score_thr=lambda value: value * 1.2)))
planted('nms_pre 50', 'atss', (NMS, settings(nms_pre=lambda value: 50)))
planted('max_per_img 99', 'atss', (NMS, settings(max_per_img=lambda value: value - 1)))
planted('IoU threshold + 0.05', 'atss', (NMS, settings(iou_threshold=lambda value: value + 0.05)))
planted('no class offsets in NMS', 'atss', (OFFSETS, lambda original: lambda boxes, *_: boxes))
planted(
    'boxes clipped at 600 px',
    'atss',
    (f'{DENSE}._clip', result(lambda boxes, *_: boxes.clamp(max=600))),
)
planted(
    'clipped after rescaling',
    'atss',
    (
        f'{DENSE}.forward',
        lambda original: (
            lambda self, boxes, scores, factors, clip_hw, scale, *border: original(
                self,
                [level / scale[:, None] for level in boxes],
                scores,
                factors,
                clip_hw,
                torch.ones_like(scale),
                *border,
            )
        ),
    ),
)
planted(
    "all images have the first one's img_shape",
    'atss',
    (f'{DENSE}._clip', arguments(lambda self, boxes, clip_hw: (self, boxes, clip_hw[:1]))),
)
planted(
    "every third image has the first one's scale_factor",
    'atss',
    (
        f'{DENSE}.forward',
        arguments(
            lambda self, boxes, scores, factors, clip_hw, scale, *border: (
                *(self, boxes, scores, factors, clip_hw),
                scale[torch.arange(scale.shape[0]) % 2],
                *border,
            )
        ),
    ),
)
planted(
    'without img_shape boxes are clipped to a multiple of 64',
    'atss',
    (
        FULL,
        arguments(
            lambda self, image, shape, *rest: (
                self,
                image[:, :, : image.shape[2] // 64 * 64, : image.shape[3] // 64 * 64],
                shape,
                *rest,
            )
        ),
    ),
)
planted(
    'without scale_factor boxes are a half pixel off',
    'atss',
    (
        f'{DENSE}.forward',
        lambda original: (
            lambda self, boxes, scores, factors, clip_hw, scale, *border: original(
                self,
                [level + 0.5 * (scale == 1).all().float() for level in boxes],
                scores,
                factors,
                clip_hw,
                scale,
                *border,
            )
        ),
    ),
)
planted(
    'the fourth level is left out',
    'atss',
    (
        f'{DECODE}:Decode.forward',
        result(lambda levels, *_: (levels[0], [*levels[1][:3], levels[1][3] * 0, *levels[1][4:]], levels[2])),
    ),
)
planted(
    'anchors of the fourth level a quarter stride off',
    'atss',
    (
        LEVEL,
        result(lambda boxes, self, level, *_: boxes + (16 if level == 3 else 0)),
    ),
)
planted(
    'centerness is forgotten',
    'atss',
    (
        f'{DENSE}.forward',
        arguments(
            lambda self, boxes, scores, factors, *rest: (
                *(self, boxes, scores),
                [torch.ones_like(level) for level in factors],
                *rest,
            )
        ),
    ),
)


def _small_growth(facts: dict[str, Any], *_: Any) -> dict[str, Any]:
    return dict(facts, coder=dict(facts['coder'], wh_ratio_clip=0.5))


planted('box sizes bounded by e^0.7', 'atss', (f'{DECODE}:facts_of', result(_small_growth)))
planted(
    'centerness rounded to float16',
    'atss',
    (
        f'{DECODE}:Decode.forward',
        result(lambda levels, *_: (*levels[:2], [x.half().float() for x in levels[2]])),
    ),
)

RTDETR = 'projects.mmdet_plugin.rtdetr'
POST = f'{RTDETR}.detector:Postprocess.forward'
planted(
    "all images have the first one's size",
    'rtdetr',
    (
        POST,
        when_traced(lambda original, self, logits, boxes, sizes: original(self, logits, boxes, sizes[:1])),
    ),
)
planted(
    'height and width swapped',
    'rtdetr',
    (
        POST,
        when_traced(
            lambda original, self, logits, boxes, sizes: original(self, logits, boxes, sizes.flip(1))
        ),
    ),
)
planted(
    'boxes clipped to the picture',
    'rtdetr',
    (
        f'{RTDETR}.decoder:cxcywh_to_xyxy',
        when_traced(lambda original, boxes: original(boxes).clamp(0, 1)),
    ),
)
planted(
    'sampling points rounded to 1 / 512',
    'rtdetr',
    (
        f'{RTDETR}.attention:DeformableAttention.locations',
        when_traced(lambda original, *args: (original(*args) * 512).round() / 512),
    ),
)
planted(
    'odds of inverse_sigmoid at least 0.1',
    'rtdetr',
    (f'{RTDETR}.decoder:inverse_sigmoid', when_traced(lambda original, values: original(values, 0.1))),
)


def _other_layout(original: Callable, self: Any, features: torch.Tensor) -> torch.Tensor:
    kept, self.layout = self.layout, 'row_major' if self.layout == 'original' else 'original'
    try:
        return original(self, features)
    finally:
        self.layout = kept


planted(
    'positions in the layout of square maps',
    'rtdetr',
    (f'{RTDETR}.encoder:PositionEmbedding.forward', when_traced(_other_layout)),
)


def _aligned_corners(original: Callable, values: Any, locations: torch.Tensor, weights: torch.Tensor) -> Any:
    levels = [
        torch.nn.functional.grid_sample(
            value, locations[:, :, :, level].transpose(1, 2).flatten(0, 1), align_corners=True
        )
        for level, value in enumerate(values)
    ]
    return (torch.cat(levels, -1) * weights).sum(-1)


planted(
    'deformable attention aligns corners',
    'rtdetr',
    (f'{RTDETR}.attention:attend_maps', when_traced(_aligned_corners)),
)
planted(
    'RepVGG: the second bias is forgotten',
    'rtdetr',
    (
        f'{RTDETR}.layers:RepVggBlock.reparameterise',
        lambda original: (
            lambda self: (
                original(self),
                setattr(self.conv, 'bias', torch.nn.Parameter(self.conv.bias * 0.98)),
            )[0]
        ),
    ),
)
