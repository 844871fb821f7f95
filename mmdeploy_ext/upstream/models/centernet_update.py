"""CenterNet with an FPN, its head with mmdet 3's names of parameters.

Source: mmdet 3.3.0 `dense_heads/centernet_update_head.py`.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from mmcv.cnn import Scale
from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

AnchorFreeHead = mmdet_module('mmdet.models.dense_heads.anchor_free_head').AnchorFreeHead
TRAINS = 'CenterNet with an FPN cannot train here; use mmdet 3'


@registered_if_named(HEADS)
class CenterNetUpdateHead(AnchorFreeHead):
    """FCOS's branches without centreness."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{'norm_cfg': dict(type='GN', num_groups=32), **kwargs})
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.strides)

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return class logits (B, C, h, w) and distances in pixels (B, 4, h, w) of every level.

        `feats` are (B, in_channels, h, w).
        """
        logits, distances = [], []
        for x, scale, stride in zip(feats, self.scales, self.strides, strict=True):
            of_classes, sides, *_ = self.forward_single(x)
            logits.append(of_classes)
            distances.append(scale(sides).clamp(min=0) * stride)
        return logits, distances

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(TRAINS)

    get_targets = loss
