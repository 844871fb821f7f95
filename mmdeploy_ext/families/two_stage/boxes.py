"""From the outputs of box heads to detections: cascades, decoding, suppression within classes.

Source: mmdet 2.28.2 `roi_heads/{standard_roi_head,cascade_roi_head,test_mixins}.py`,
`bbox_heads/bbox_head.py`, `core/post_processing/bbox_nms.py`. Glossary: see `parts/regions.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import bbox_heads
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_release
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    NmsConfig,
    SoftNmsConfig,
    Suppression,
    nms_config,
)
from mmdeploy_ext.families.parts.region_boxes import coder_of, decoded
from mmdeploy_ext.families.parts.regions import Branch, part_of, stages_of
from mmdeploy_ext.families.parts.runtime.box_coders import softmax

METHODS = ('get_bboxes', 'regress_by_class', 'refine_bboxes')
"""Methods of box heads that the graphs compute by themselves."""
HEADS = (bbox_heads.BBoxHead, bbox_heads.SABLHead)
SPLIT_BY_IMAGE = (2, 14)
"""Release of mmdet since which regions of a batch are split by their image. Before it heads of one stage took
regions whose lower side is at 0 for padding, and put zeros in place of what the head gives (compared: 2.11.0,
2.14.0)."""


def check_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a box head that the graph does not repeat."""
    if not isinstance(head, HEADS) or not getattr(head, 'with_cls', True):
        raise ConfigError(f'{type(head).__name__}: no box head that is exported, with classes')
    coder_of(head)


def thresholds(test_cfg: Mapping[str, Any]) -> NmsConfig:
    """Return what `test_cfg.rcnn` decides; `soft_nms` is taken."""
    return nms_config(test_cfg, soft=True, key='model.test_cfg.rcnn')


def output_names(head: nn.Module) -> tuple[str, ...]:
    """Return the names of the outputs of a box head, in its order."""
    if isinstance(head, bbox_heads.SABLHead):
        return 'cls_score', 'bbox_cls', 'bbox_reg'
    return 'cls_score', 'bbox_pred'


def last_head(roi_head: nn.Module) -> nn.Module:
    """Return the box head whose boxes are the results."""
    return part_of(roi_head, 'bbox_head', stages_of(roi_head) - 1)


def activated(head: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return class scores (..., C) in 0..1; the background, the last column, is left out."""
    scores = head.loss_cls.get_activation(logits) if head.custom_cls_channels else softmax(logits)
    return scores[..., :-1]


class Boxes(nn.Module):
    """All stages of the box heads, and the post-processing of the last one."""

    def __init__(self, roi_head: nn.Module, config: NmsConfig, cap: int = 0) -> None:
        """Keep the heads; `config` has the thresholds of the results; for `cap` see `Suppression`."""
        super().__init__()
        self.stages = nn.ModuleList(
            Branch(roi_head, 'bbox', stage, bool(cap)) for stage in range(stages_of(roi_head))
        )
        self.config, self.cap = config, cap
        self.padded_at_top = len(self.stages) == 1 and mmdet_release() < SPLIT_BY_IMAGE

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        proposals: torch.Tensor,
        present: torch.Tensor,
        clip_hw: torch.Tensor,
        scale_factor: torch.Tensor,
        seen: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5) and labels (B, n), with a cap also candidates (B,), see `Suppression`.

        Args:
            maps: features of all levels.
            proposals: (B, K, 4) xyxy, pixels of the network input.
            present: (B, K) bool; other rows are padding.
            clip_hw: (B, 2) float32 height and width that boxes are clipped to.
            scale_factor: (B, 4) float32 `w h w h`; boxes are divided by it.
            seen: gets, per stage, what its head looks at and gives, by name, a row per region.
        """
        regions, logits = proposals, []
        for index, stage in enumerate(self.stages):
            given = () if seen is None else (seen,)
            scores, *deltas = (one.reshape(*regions.shape[:2], -1) for one in stage(maps, regions, *given))
            if self.padded_at_top:
                inside = regions[..., 3:] != 0
                scores, *deltas = (torch.where(inside, one, 0.0) for one in (scores, *deltas))
            logits.append(scores)
            if seen is not None:
                outputs = dict(zip(output_names(stage.head), (scores, *deltas), strict=True))
                seen[-1] = {f'{name}_{index}': one for name, one in (seen[-1] | outputs).items()}
                if index:
                    seen[-1] = {f'regions_{index}': regions} | seen[-1]
            boxes, factors = decoded(stage.head, regions, deltas, clip_hw)
            if index + 1 < len(self.stages):
                regions = _of_best_class(stage.head, boxes, scores)
        scores = activated(self.stages[-1].head, sum(logits) / float(len(logits)))
        boxes = boxes / scale_factor[:, None, None]
        candidates = (scores > self.config.score_thr) & present[..., None]
        scores = scores if factors is None else scores * factors[..., None]
        scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores)
        boxes = boxes.expand(-1, -1, scores.shape[2], -1)
        config = self.config
        suppress = Suppression(
            *(config.iou_threshold, config.max_per_img, config.class_agnostic),
            cap=self.cap,
            soft=config if isinstance(config, SoftNmsConfig) else None,
        )
        return suppress(*(one.flatten(1, 2) for one in (boxes, scores, labels, candidates)))


def _of_best_class(head: nn.Module, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the box (B, K, 4) of each region's best class; `scores` are its logits."""
    if boxes.shape[2] == 1:
        return boxes[:, :, 0]
    if head.custom_activation:
        scores = head.loss_cls.get_activation(scores)
    best = scores[..., :-1].argmax(dim=2)
    return boxes.gather(2, best[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
