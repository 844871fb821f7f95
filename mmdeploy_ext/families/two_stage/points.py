"""Masks of PointRend: enlarged step by step, where the least certain cells are looked at again.

Source: mmdet 2.28.2 `roi_heads/point_rend_roi_head.py`, `mask_heads/mask_point_head.py`; what is at a
point, `parts/region_sampling.py`. mmdet refines the masks of all classes, of which one is used: here it is
that one. Glossary: see `parts/regions.py`; P points of a region, m side of a mask.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from mmdeploy_ext.families.parts.mask_logits import own_rows
from mmdeploy_ext.families.parts.mask_settings import points_of
from mmdeploy_ext.families.parts.region_sampling import sampled

METHODS = ('_mask_point_forward_test', '_get_fine_grained_point_feats')
"""Methods of a PointRend head that the graphs compute by themselves."""


class Points(nn.Module):
    """The steps of PointRend."""

    def __init__(self, roi_head: nn.Module) -> None:
        super().__init__()
        self.head, config = points_of(roi_head), roi_head.test_cfg
        self.scales = [1.0 / stride for stride in roi_head.mask_roi_extractor.featmap_strides]
        self.points, self.factor = int(config.subdivision_num_points), int(config.scale_factor)
        self.steps, self.by_class = int(config.subdivision_steps), not self.head.class_agnostic

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        boxes: torch.Tensor,
        coarse: torch.Tensor,
        own: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return refined logits (R, 1, m, m) of boxes (B, n, 4), pixels of the network input.

        `coarse` (R, C, h, h) are logits of the mask head, `own` (R, 1, h, h) those of each region's own
        class.
        """
        boxes, side = boxes.flatten(0, 1), int(own.shape[-1])
        for step in range(self.steps):
            side *= self.factor
            own = functional.interpolate(own, size=(side, side), mode='bilinear', align_corners=False)
            if self.points >= (self.factor * side) ** 2 and step < self.steps - 1:
                continue
            chosen = (-own.flatten(1).abs()).topk(min(side * side, self.points), dim=1).indices
            where = torch.stack([chosen % side, chosen // side], dim=2).to(own)
            where = 1.0 / side / 2.0 + where * (1.0 / side)
            fine = [sampled(one, boxes, where, scale) for one, scale in zip(maps, self.scales, strict=False)]
            near = functional.grid_sample(coarse, where[:, :, None] * 2.0 - 1.0, align_corners=False)[..., 0]
            found = self.head(torch.cat(fine, dim=1), near)
            found = own_rows(found, labels) if self.by_class else found
            own = own.flatten(2).scatter(2, chosen[:, None], found).reshape(-1, 1, side, side)
        return own
