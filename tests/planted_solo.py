"""Faults of SOLO's networks and of the post-processing of masks."""

from __future__ import annotations

import torch

from planting import arguments, planted, result, settings

SOLO, MASK = 'projects.mmdet_plugin.solo.networks', 'mmdeploy_ext.exporting.postprocess.mask'
MASKS = 'projects.mmdet_plugin.solo.postprocess:mask_config'
BOTH = 'solov2 decoupled_solo'
planted('score threshold x 1.2', BOTH, (MASKS, settings(score_thr=lambda value: value * 1.2)))
planted('mask threshold + 0.02', BOTH, (MASKS, settings(mask_thr=lambda value: value + 0.02)))
planted('filter_thr x 1.2', BOTH, (MASKS, settings(filter_thr=lambda value: value * 1.2)))
planted('a tenth of nms_pre', BOTH, (MASKS, settings(nms_pre=lambda value: value // 10)))
planted('max_per_img 99', BOTH, (MASKS, settings(max_per_img=lambda value: value - 1)))
planted('sigma of the kernel + 5 %', BOTH, (MASKS, settings(sigma=lambda value: value * 1.05)))
planted(
    'points NMS looks right and down',
    BOTH,
    (f'{SOLO}:points_nms', lambda original: lambda logits: original(logits.flip(2, 3)).flip(2, 3)),
)
planted(
    'bilinear resizes align corners',
    'solov2',
    (
        f'{SOLO}:resize',
        lambda original: (
            lambda features, size: torch.nn.functional.interpolate(
                features, size=size, mode='bilinear', align_corners=True
            )
        ),
    ),
)
planted(
    'coordinates without the end points',
    BOTH,
    (
        f'{SOLO}:Coordinates._line',
        result(lambda line, size, like: line * (1 - 1 / torch.as_tensor(line.shape[0]))),
    ),
)
planted(
    'areas of half the stride count',
    BOTH,
    (
        f'{MASK}:MaskPostprocess._rescored',
        arguments(lambda self, scores, areas, totals: (self, scores, areas * 2, totals * 2)),
    ),
)
planted(
    'masks are not cropped to img_shape',
    BOTH,
    (
        f'{MASK}:resize_and_threshold',
        arguments(lambda soft, shape, *rest: (soft, torch.zeros_like(shape), *rest)),
    ),
)
planted(
    'bands of masks a line short',
    BOTH,
    (
        'mmdeploy_ext.exporting.postprocess.mask_resize:_bands',
        result(lambda bands, *_: [(*ends, (high - 3).clamp(min=1)) for *ends, high in bands]),
    ),
)
planted(
    'matrix NMS compensates along the wrong axis',
    BOTH,
    (
        f'{MASK}:matrix_decay',
        arguments(
            lambda scores, labels, areas, overlaps, config: (scores, labels, areas.flip(1), overlaps, config)
        ),
    ),
)
planted(
    'masks of every third image are of the first',
    BOTH,
    (
        'mmdeploy_ext.exporting.postprocess.soft_masks:pick_rows',
        arguments(lambda table, rows: (table[torch.arange(table.shape[0]) % 2], rows)),
    ),
)
