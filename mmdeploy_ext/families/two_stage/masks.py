"""Masks in the frame of boxes: equal to mmdet 2.28.2's `simple_test_mask` before pasting.

Source: `roi_heads/{test_mixins,cascade_roi_head,point_rend_roi_head}.py`,
`mask_heads/{fcn_mask_head,mask_point_head}.py`.
Glossary: B batch, n rows of an image, with padding, R = B * n regions, C classes, m side of a mask in cells,
h side of a mask before PointRend enlarges it.
"""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import mask_heads
from torch import nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.mask_heads import (
    StagedMaskHeads,
    heads_of,
    judge_of,
    mask_logits_module,
    points_of,
    predicted_class_only,
    rows_of_class,
)
from mmdeploy_ext.families.common.regions import sampled

POINT_SETTINGS = ('subdivision_steps', 'subdivision_num_points', 'scale_factor')


def check_head(head: nn.Module) -> None:
    if not isinstance(head, mask_heads.FCNMaskHead):
        raise ConfigError(
            f'{type(head).__name__}: this mask head is not supported; expected FCNMaskHead or a class '
            'derived from it'
        )


def mask_borders(roi_head: nn.Module) -> tuple[str, ...]:
    if not roi_head.with_mask or points_of(roi_head) or judge_of(roi_head):
        return ()
    if not isinstance(mask_logits_module(roi_head), StagedMaskHeads):
        return ()
    return 'mask_regions', *(f'mask_logits_{stage}' for stage in range(len(heads_of(roi_head))))


class Masks(nn.Module):
    """All stages of the mask heads: each detection's mask, and scores of masks."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__()
        self.logits = mask_logits_module(roi_head, constant)
        self.by_class = not heads_of(roi_head)[-1].class_agnostic
        self.points = Points(roi_head) if points_of(roi_head) else None
        self.judge, self.heads = judge_of(roi_head), tuple(heads_of(roi_head))

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
        stage_tensors: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return masks (B, n, m, m) in 0..1, and of scoring heads scores (B, n); rows of padding are zero.

        Args:
            maps: of `regions.region_maps`, (B, channels, h, w) each.
            dets: (B, n, 5) boxes xyxy divided by `scale_factor`, and scores.
            labels: (B, n), -1 for padding.
            scale_factor: (B, 4) `w h w h`, input / original.
            stage_tensors: gets a dict: `mask_regions` (B, n, 4), pixels of the network input, and of every
                stage `mask_logits_<stage>` (R, 1, m, m).
        """
        boxes, classes = dets[..., :4] * scale_factor[:, None], labels.flatten()
        features, logits = self._logits_of_classes(maps, boxes, classes)
        if stage_tensors is not None:
            tensors = {f'mask_logits_{stage}': tensor for stage, tensor in enumerate(logits)}
            stage_tensors.append({'mask_regions': boxes, **tensors})
        masks = [tensor.sigmoid() for tensor in logits]
        masks = sum(masks) / float(len(masks)) if len(masks) > 1 else masks[0]
        masks = torch.where(classes[:, None, None, None] >= 0, masks, torch.zeros_like(masks))
        masks = masks.reshape(*labels.shape, *masks.shape[2:])
        if self.judge is None:
            return (masks,)
        ious = rows_of_class(self.judge(features, logits[-1][:, 0]), classes)[:, 0].reshape(labels.shape)
        return masks, torch.where(labels >= 0, ious * dets[..., 4], torch.zeros_like(ious))

    def _logits_of_classes(
        self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        has_last_layer = all(hasattr(head, 'conv_logits') for head in self.heads)  # not CoarseMaskHead's
        if self.points is None and self.by_class and has_last_layer:
            with predicted_class_only(self.heads, classes.clamp(min=0)):
                return self.logits(maps, boxes)
        features, logits = self.logits(maps, boxes)
        if self.points is None:
            of_classes = [rows_of_class(tensor, classes) for tensor in logits] if self.by_class else logits
            return features, of_classes
        of_class = rows_of_class(logits[0], classes) if self.by_class else logits[0]
        return features, [self.points(maps, boxes, logits[0], of_class, classes)]


class Points(nn.Module):
    """Masks of PointRend, enlarged step by step at the least certain cells."""

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
        logits: torch.Tensor,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        """Return refined logits (R, 1, m, m) of boxes (B, n, 4), pixels of the network input.

        `coarse` (R, C or 1, h, h) are the mask head's logits, `logits` (R, 1, h, h) of the classes (R,).
        """
        boxes, side = boxes.flatten(0, 1), int(logits.shape[-1])
        for step in range(self.steps):
            side *= self.factor
            logits = functional.interpolate(logits, size=(side, side), mode='bilinear', align_corners=False)
            if self.points >= (self.factor * side) ** 2 and step < self.steps - 1:
                continue
            cells = (-logits.flatten(1).abs()).topk(min(side * side, self.points), dim=1).indices
            points = torch.stack([cells % side, cells // side], dim=2).to(logits)
            points = 1.0 / side / 2.0 + points * (1.0 / side)
            fine = [
                sampled(level, boxes, points, scale) for level, scale in zip(maps, self.scales, strict=False)
            ]
            grid = points[:, :, None] * 2.0 - 1.0
            of_points = functional.grid_sample(coarse, grid, align_corners=False)[..., 0]
            refined = self.head(torch.cat(fine, dim=1), of_points)
            refined = rows_of_class(refined, classes) if self.by_class else refined
            logits = logits.flatten(2).scatter(2, cells[:, None], refined).reshape(-1, 1, side, side)
        return logits
