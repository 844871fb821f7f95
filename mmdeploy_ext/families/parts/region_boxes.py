"""The boxes of a head of regions, decoded by its own coder and clipped.

Source: mmdet 2.28.2 `bbox_heads/bbox_head.py`. Glossary: see `regions.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import bbox_heads
from torch import nn

from mmdeploy_ext.exporting.postprocess.suppression import clip_to
from mmdeploy_ext.families.parts.dense_heads import border_inset, bucket_settings, chosen_coder, clips
from mmdeploy_ext.families.parts.runtime.box_coders import CODERS, bucket_choice

BUCKETS = 'bucket'
"""The coder whose boxes are clipped one pixel inside, and that gives scores a factor."""


def coder_of(head: nn.Module) -> dict[str, Any]:
    """Return the settings of the coder of a box head, as `runtime/box_coders.py` reads them."""
    if isinstance(head, bbox_heads.SABLHead):
        return bucket_settings(head)
    return chosen_coder(head, f'model.roi_head.bbox_head ({type(head).__name__})')


def decoded(
    head: nn.Module, regions: torch.Tensor, outputs: Sequence[torch.Tensor], clip_hw: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return boxes (B, K, G, 4) xyxy, clipped to `clip_hw` (B, 2), and score factors (B, K) or None.

    Of regions (B, K, 4), and outputs (B, K, columns) of mmdet's head besides the class logits.
    """
    if not getattr(head, 'with_reg', True):
        return clip_to(regions, clip_hw)[:, :, None], None
    settings, factors, inset = coder_of(head), None, border_inset(head)
    if settings['type'] == BUCKETS:
        rows = dict(zip(('bbox_cls', 'bbox_reg'), outputs, strict=True))
        boxes = CODERS[BUCKETS](torch, regions, rows, settings, 0)[:, :, None]
        factors, inset = bucket_choice(torch, rows, settings)[1], 1.0
    else:
        rows = dict(bbox_pred=outputs[0].reshape(*outputs[0].shape[:2], -1, 4))
        boxes = CODERS[settings['type']](torch, regions[:, :, None], rows, settings, 0)
    if clips(head):
        boxes = clip_to(boxes.flatten(1, 2), clip_hw, inset).reshape(boxes.shape)
    return boxes, factors
