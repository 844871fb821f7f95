"""Masks of boxes, in the frame of the box: equal to mmdet 2.28.2's `simple_test_mask` before pasting.

Source: `roi_heads/{test_mixins,cascade_roi_head}.py`, `mask_heads/fcn_mask_head.py`. Glossary: see
`parts/regions.py`; n detections, m side of a mask.
"""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import mask_heads
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.mask_logits import heads_of, judge_of, logits_of, own_class, own_rows
from mmdeploy_ext.families.parts.mask_settings import points_of
from mmdeploy_ext.families.two_stage.points import Points


def check_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a mask head that the graph does not repeat."""
    if not isinstance(head, mask_heads.FCNMaskHead):
        raise ConfigError(
            f'{type(head).__name__}: no mask head that is exported; expected one of FCNMaskHead'
        )


class Masks(nn.Module):
    """All stages of the mask heads: probabilities of each detection's own class, and what judges them."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        """Keep the heads; `constant`: no shape of the graph may depend on values."""
        super().__init__()
        self.logits = logits_of(roi_head, constant)
        self.by_class = not heads_of(roi_head)[-1].class_agnostic
        self.points = Points(roi_head) if points_of(roi_head) else None
        self.judge, self.heads = judge_of(roi_head), tuple(heads_of(roi_head))

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return masks (B, n, m, m) in 0..1, and of scoring heads scores (B, n); zero where a row is padding.

        `dets` (B, n, 5) are boxes that were divided by `scale_factor` (B, 4), and scores; labels are -1 where
        a row is padding.
        """
        boxes, rows = dets[..., :4] * scale_factor[:, None], labels.flatten()
        features, own = self._own(maps, boxes, rows)
        found = [one.sigmoid() for one in own]
        masks = sum(found) / float(len(found)) if len(found) > 1 else found[0]
        masks = torch.where(rows[:, None, None, None] >= 0, masks, torch.zeros_like(masks))
        masks = masks.reshape(*labels.shape, *masks.shape[2:])
        if self.judge is None:
            return (masks,)
        judged = own_rows(self.judge(features, own[-1][:, 0]), rows)[:, 0].reshape(labels.shape)
        return masks, torch.where(labels >= 0, judged * dets[..., 4], torch.zeros_like(judged))

    def _own(
        self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return features of regions, and the logits (R, 1, m, m) of the own class by every stage."""
        if self.points is None and self.by_class:
            with own_class(self.heads, labels.clamp(min=0)):
                return self.logits(maps, boxes)
        features, found = self.logits(maps, boxes)
        if self.points is None:
            return features, found
        own = own_rows(found[0], labels) if self.by_class else found[0]
        return features, [self.points(maps, boxes, found[0], own, labels)]
