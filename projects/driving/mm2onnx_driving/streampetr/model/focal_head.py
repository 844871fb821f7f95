"""The layers of the 2D auxiliary head, for training alone.

Source: StreamPETR `models/dense_heads/focal_head.py`, after Focal-PETR (Wang et al., 2022).
"""

from typing import Any

from mmcv.runner import BaseModule
from mmdet.models import HEADS
from torch import nn

from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(HEADS)
class FocalHead(BaseModule):
    """2D boxes, centres and classes per token; `in_channels` is a multiple of 32."""

    def __init__(
        self, num_classes: int, in_channels: int = 256, init_cfg: dict | None = None, **training: Any
    ) -> None:
        super().__init__(init_cfg)
        self.cls = nn.Conv2d(in_channels, num_classes, 1)
        self.shared_reg = tower(in_channels)
        self.shared_cls = tower(in_channels)
        self.centerness = nn.Conv2d(in_channels, 1, 1)
        self.ltrb = nn.Conv2d(in_channels, 4, 1)
        self.center2d = nn.Conv2d(in_channels, 2, 1)


def tower(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(32, channels), nn.ReLU())
