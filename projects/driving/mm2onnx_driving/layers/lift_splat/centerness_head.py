"""A head of centres of objects, beside a head of occupancy.

Source: Yzichen/FlashOCC 4084861, dense_heads/bev_centerpoint_head.py:989-1656 and `center_decode`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import HEADS
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor
from torch.nn import functional

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
