"""Parts of mmdet 3's configs for V3Det, which has 13,204 classes.

Source: mmdet 3.3.0 `losses/cross_entropy_loss.py`, `dense_heads/fcos_head.py`.
"""

from typing import Any

import torch
from mmdet.models.builder import HEADS, LOSSES
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.utils import NormedConv2d

from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

FCOSHead = mmdet_module('mmdet.models.dense_heads').FCOSHead


@registered_if_named(LOSSES)
class CrossEntropyCustomLoss(CrossEntropyLoss):
    """Class scores of a box head whose classifier has no column of the background, with `use_sigmoid`."""

    custom_cls_channels = custom_activation = True

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def get_cls_channels(self, num_classes: int) -> int:
        return num_classes if self.use_sigmoid else num_classes + 1

    def get_activation(self, cls_score: torch.Tensor) -> torch.Tensor:
        """Return scores (..., C + 1), the background last, of logits (..., C); of C + 1 with a softmax."""
        if not self.use_sigmoid:
            return cls_score.softmax(-1)
        scores = cls_score.sigmoid()
        return torch.cat([scores, (1 - scores.sum(-1, keepdim=True)).clamp(0, 1)], -1)


@registered_if_named(HEADS)
class NormedFCOSHead(FCOSHead):
    """FCOS's head with a NormedConv2d of 1x1 as classifier; `cls_predictor_cfg` has its settings."""

    def __init__(self, *args: Any, cls_predictor_cfg: dict[str, Any], **kwargs: Any) -> None:
        self.cls_predictor_cfg = cls_predictor_cfg
        super().__init__(*args, **kwargs)

    def _init_predictor(self) -> None:
        super()._init_predictor()
        self.conv_cls = NormedConv2d(self.feat_channels, self.cls_out_channels, 1, **self.cls_predictor_cfg)
