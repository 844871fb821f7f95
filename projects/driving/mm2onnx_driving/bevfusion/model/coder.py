"""The coder of TransFusion's head: predictions of a query to its box, and back.

Glossary: B samples, Q queries, K classes, n boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from torch import Tensor

from mmdeploy_ext.upstream.models.catalogue import registered_if_named


def boxes_of_cells(
    coder: Any,
    center: Tensor,
    height: Tensor,
    dim: Tensor,
    rot: Tensor,
    vel: Tensor | None = None,
    logarithms: bool = True,
) -> Tensor:
    """Return boxes (B, Q, 7 or 9): bottom centre, w, l, h in m, yaw in rad, velocity in m/s.

    Args:
        coder: box coder with `voxel_size`, `out_size_factor` and `pc_range`.
        center: (B, 2, Q), cells, x first.
        height: (B, 1, Q), m.
        dim: (B, 3, Q) w, l, h in m, or their logarithms.
        rot: (B, 2, Q) sine and cosine of the yaw.
        vel: (B, 2, Q) m/s; without it boxes have 7 columns.
        logarithms: `dim` holds logarithms.
    """
    cell_size = center.new_tensor([size * coder.out_size_factor for size in coder.voxel_size[:2]])[:, None]
    centre_m = center * cell_size + center.new_tensor(coder.pc_range[:2])[:, None]
    box_size = dim.exp() if logarithms else dim
    bottom = height - box_size[:, 2:] * 0.5
    yaw = torch.atan2(rot[:, :1], rot[:, 1:])
    columns = [centre_m, bottom, box_size, yaw]
    if vel is not None:
        columns.append(vel)
    return torch.cat(columns, 1).transpose(1, 2)


@registered_if_named(BBOX_CODERS)
class TransFusionBBoxCoder(BaseBBoxCoder):
    """Cells to metres, logarithms to sizes, gravity centre to bottom centre.

    `pc_range` is the first cell's corner (x, y, m); a cell is `out_size_factor` voxels of `voxel_size` (m);
    `code_size` is 8, or 10 with the velocity. Kept are boxes with a bottom centre in `post_center_range` (x,
    y, z low, then high) and a score above `score_threshold`.

    Source: mit-han-lab/bevfusion db75150, core/bbox/coders/transfusion_bbox_coder.py.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        out_size_factor: int,
        voxel_size: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        score_threshold: float | None = None,
        code_size: int = 8,
    ) -> None:
        self.pc_range, self.voxel_size = tuple(pc_range), tuple(voxel_size)
        self.out_size_factor, self.code_size = out_size_factor, code_size
        self.post_center_range = None if post_center_range is None else tuple(post_center_range)
        self.score_threshold = score_threshold

    def encode(self, boxes: Tensor) -> Tensor:
        """Return the regression targets (n, code_size) of boxes (n, 7 or 9), bottom centre, m, rad, m/s."""
        cell = boxes.new_tensor([size * self.out_size_factor for size in self.voxel_size[:2]])
        place = (boxes[:, :2] - boxes.new_tensor(self.pc_range[:2])) / cell
        height = boxes[:, 2:3] + boxes[:, 5:6] / 2
        yaw = boxes[:, 6:7]
        columns = [place, height, boxes[:, 3:6].log(), yaw.sin(), yaw.cos(), boxes[:, 7:9]]
        return torch.cat(columns, 1)[:, : self.code_size]

    boxes = boxes_of_cells

    def within_limits(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return (B, Q) bool: boxes (B, Q, 7 or 9) and scores (B, Q) within the limits."""
        valid = torch.ones_like(scores, dtype=torch.bool)
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            valid = ((boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])).all(2)
        return valid & (scores > self.score_threshold) if self.score_threshold else valid

    def decode(self, scores: Tensor, *values: Tensor) -> list[dict[str, Tensor]]:
        """Return 'bboxes', 'scores' and 'labels' of each sample, in the order of the queries.

        Scores are (B, K, Q) in 0..1, the values as in `boxes_of_cells`: center, height, dim, rot and vel.
        """
        best, labels = scores.max(1)
        boxes = self.boxes(*values)
        samples = zip(boxes, best, labels, self.within_limits(boxes, best), strict=True)
        return [
            dict(bboxes=rows[valid], scores=score[valid], labels=label[valid])
            for rows, score, label, valid in samples
        ]
