"""From logits of classes and masks of queries to panoptic maps; `exporting/postprocess/panoptic.py` has how.

Glossary: B batch, Q queries, C classes, H4, W4 a quarter of the network input, h, w size of the map.
"""

from typing import Any

import torch
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.mask_resize import resizing_of
from mmdeploy_ext.exporting.postprocess.panoptic import QueryFusion
from mmdeploy_ext.families.query.masks import RATIO


def facts_of(fusion: nn.Module) -> dict[str, Any]:
    """Return the settings of mmdet's fusion head, as files tell them to `families/query/runtime`."""
    test_cfg = fusion.test_cfg
    return dict(
        num_classes=int(fusion.num_classes),
        num_things=int(fusion.num_things_classes),
        object_mask_thr=float(test_cfg.get('object_mask_thr', 0.8)),
        iou_thr=float(test_cfg.get('iou_thr', 0.8)),
        filter_low_score=bool(test_cfg.get('filter_low_score', False)),
    )


class MapFullForm(nn.Module):
    """What the `full` form adds to the network: masks at the size of the original, fused into a map."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = QueryFusion(facts_of(fusion))

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return the map (B, h, w) int32; its inputs are those of `masks.MasksFullForm.forward`."""
        rows, columns = resizing_of(masks, img_shape, ori_shape, RATIO)
        values = rows[:, None] @ (masks @ columns.transpose(1, 2)[:, None])
        return (tap('panoptic', self.fusion(logits, values)),)
