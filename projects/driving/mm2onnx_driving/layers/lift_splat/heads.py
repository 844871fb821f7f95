"""Heads on an encoded bird's-eye view: centres of objects, classes of voxels.

Source: Yzichen/FlashOCC 4084861, dense_heads/bev_occ_head.py,
dense_heads/bev_centerpoint_head.py:989-1656 and `center_decode`.

Glossary: B samples, C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmdet.models import HEADS
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(HEADS)
class Centerness_Head(CenterHead):
    """mmdet3d's `CenterHead` of one task, of which places and classes are read."""

    def __init__(self, task_specific: bool = True, task_specific_weight: Any = None, **config: Any) -> None:
        super().__init__(**config)

    def get_centers(
        self, preds_dicts: Sequence[Sequence[Mapping[str, Tensor]]], img_metas: Any = None, **unused: Any
    ) -> list[list[Tensor]]:
        """Return lists of one: centres (n, 3) m, scores (n,) and labels (n,), best first.

        `preds_dicts` have `reg` (1, 2, Y, X), `height` (1, 1, Y, X) and `heatmap` (1, K, Y, X).
        """
        ((maps,),), coder = preds_dicts, self.bbox_coder
        heat = maps['heatmap'].sigmoid()
        heat = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat)
        scores, cells, labels, rows, columns = (row[0] for row in coder._topk(heat, coder.max_num))
        shift, height = (maps[name][0].flatten(1).T[cells] for name in ('reg', 'height'))
        places = [
            (steps + shift[:, axis]) * coder.out_size_factor * coder.voxel_size[axis] + coder.pc_range[axis]
            for axis, steps in enumerate((columns, rows))
        ]
        centers = torch.stack([*places, height[:, 0]], 1)
        low, high = centers.new_tensor(coder.post_center_range).split(3)
        kept = ((centers >= low) & (centers <= high)).all(1) & (scores > coder.score_threshold)
        return [[centers[kept]], [scores[kept]], [labels[kept].float()]]


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
