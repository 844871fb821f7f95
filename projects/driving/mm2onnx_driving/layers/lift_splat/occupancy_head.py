"""Classes of voxels from an encoded bird's-eye view.

Source: Yzichen/FlashOCC 4084861, dense_heads/bev_occ_head.py.

Glossary: B samples, C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.
"""

from typing import Any

import numpy as np
from mmcv.cnn import ConvModule
from mmdet.models import HEADS
from torch import Tensor, nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(HEADS)
class BEVOCCHead2D(nn.Module):
    """Classes of voxels; each column's are made of the channels of its cell."""

    def __init__(
        self,
        in_dim: int = 256,
        out_dim: int = 256,
        Dz: int = 16,
        num_classes: int = 18,
        **of_training: Any,
    ) -> None:
        super().__init__()
        self.Dz, self.num_classes = Dz, num_classes
        self.final_conv = ConvModule(in_dim, out_dim, 3, padding=1, conv_cfg=dict(type='Conv2d'))
        layers = nn.Linear(out_dim, out_dim * 2), nn.Softplus(), nn.Linear(out_dim * 2, num_classes * Dz)
        self.predicter = nn.Sequential(*layers)

    def forward(self, view: Tensor) -> Tensor:
        """Return logits (B, X, Y, Z, K) of an encoded view (B, C, Y, X)."""
        columns = self.final_conv(view).permute(0, 3, 2, 1)
        return tap('occ_logits', self.predicter(columns).unflatten(-1, (self.Dz, self.num_classes)))

    def get_occ(self, logits: Tensor, img_metas: Any = None) -> list[np.ndarray]:
        """Return the classes (X, Y, Z) uint8 of each sample."""
        return [*logits.softmax(-1).argmax(-1).cpu().numpy().astype(np.uint8)]


@registered_if_named(HEADS)
class BEVOCCHead2D_V2(BEVOCCHead2D):
    """The head with other losses."""
