"""Outputs of box heads to detections: cascades, decoding, suppression within classes, grids.

Source: mmdet 2.28.2 `roi_heads/{standard_roi_head,cascade_roi_head,grid_roi_head,test_mixins}.py`,
`bbox_heads/bbox_head.py`, `mask_heads/grid_head.py`, `core/post_processing/bbox_nms.py`.
Glossary: B batch, K proposals of an image, C classes, n detections of the fullest image (with a cap
constant). The points of a grid are numbered column by column.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads import bbox_heads
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE, Suppression, gather_rows, nms_config
from mmdeploy_ext.families.common.dense_heads import OWN, compares_products, place_of_method
from mmdeploy_ext.families.common.regions import (
    Pool,
    RegionBranch,
    coder_of,
    context_names,
    decoded,
    grid_of,
    part_of,
    stages_of,
)
from mmdeploy_ext.runtime.geometry import softmax
from mmdeploy_ext.spec.facts import NmsConfig
from mmdeploy_ext.upstream.models.crowddet import PAIR, MultiInstanceBBoxHead
from mmdeploy_ext.upstream.operators.nms import greedy_keep_batch, pairwise_iou

HEADS = (bbox_heads.BBoxHead, bbox_heads.SABLHead)
INVERTING_CODERS = ('tblr', 'bucket')
"""Coders that may give boxes with an end before their begin."""
NEEDED = ('score_thr', 'nms', 'max_per_img')
PADDED = {(False, False, False): '', (False, True, True): 'lower', (False, False, True): 'all'}
"""Regions of `padded_rows` that are padding -> its result."""


def padded_rows(roi_head: nn.Module) -> str:
    head, given = roi_head.bbox_head, []
    place = place_of_method(roi_head, 'simple_test_bboxes')
    regions = next(head.parameters()).new_tensor([[4.0, 4, 12, 12], [4, 0, 12, 0], [0, 0, 0, 0]])
    logits = regions.new_ones(len(regions), 2)

    def keep(rois: torch.Tensor, scores: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        given.append(scores)
        return regions.new_zeros(0, 5), regions.new_zeros(0)

    outputs = dict(cls_score=logits, bbox_pred=None, bbox_feats=None)
    metas = [dict(img_shape=(16, 16, 3), ori_shape=(16, 16, 3), scale_factor=np.ones(4, np.float32))]
    with (
        replaced_entry(vars(roi_head), '_bbox_forward', lambda *_, **__: outputs),
        replaced_entry(vars(head), 'get_bboxes', keep),
        torch.no_grad(),
    ):
        try:
            roi_head.simple_test_bboxes([regions], metas, [regions], roi_head.test_cfg)
        except Exception as error:  # a user's method raises what it likes
            raised = f'{type(error).__name__}: {error}{users_line(error)}'
            raise ConfigError(f'{place} raises on three generated regions: {raised}; use {OWN}') from error
    zeros = tuple((given[0].reshape(len(regions), -1) == 0).all(1).tolist())
    if zeros not in PADDED:
        raise ConfigError(f'{place} drops regions in a way that mm2onnx does not know: use {OWN}')
    return PADDED[zeros]


def is_padding(regions: torch.Tensor, padding: str) -> torch.Tensor:
    """Return (..., 1): whether regions (..., 4) get no outputs; `padding` is of `padded_rows`."""
    return ((regions[..., 3:] if padding == 'lower' else regions) == 0).all(-1, keepdim=True)


def check_head(head: nn.Module) -> None:
    if not isinstance(head, HEADS) or not getattr(head, 'with_cls', True):
        raise ConfigError(f'{type(head).__name__}: this box head is not supported; expected one with classes')
    columns = getattr(getattr(head, 'fc_cls', None), 'out_features', None)
    if columns == head.num_classes and not getattr(head, 'custom_cls_channels', False):
        raise ConfigError(  # a graph takes off the column of the background
            f'model.roi_head.bbox_head.type={type(head).__name__}: its layer fc_cls gives {columns} '
            f'columns for num_classes={columns}; expected one more, for the background'
        )
    coder_of(head)


def thresholds(test_cfg: Mapping[str, Any], key: str = 'rcnn') -> NmsConfig:
    return nms_config(test_cfg, soft=True, key=f'model.test_cfg.{key}.nms')


def output_names(head: nn.Module) -> tuple[str, ...]:
    if not getattr(head, 'with_reg', True):
        return ('cls_score',)
    if isinstance(head, bbox_heads.SABLHead):
        return 'cls_score', 'bbox_cls', 'bbox_reg'
    return 'cls_score', 'bbox_pred'


def box_borders(roi_head: nn.Module) -> tuple[str, ...]:
    """Return the names of the box heads' outputs, and of regions of later stages; () for HTC and SCNet."""
    if context_names(roi_head) or getattr(roi_head, 'with_feat_relay', False):
        return ()
    names = []
    for stage in range(stages_of(roi_head)):
        outputs = output_names(part_of(roi_head, 'bbox_head', stage))
        names += [f'{name}_{stage}' for name in (('regions', *outputs) if stage else outputs)]
    return tuple(names)


def last_head(roi_head: nn.Module) -> nn.Module:
    return part_of(roi_head, 'bbox_head', stages_of(roi_head) - 1)


def activated(head: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return class scores (..., C) in 0..1 of logits (..., C + 1), or (..., C + 2) for SeesawLoss.

    Of CrowdDet the scores (..., 2) of a pair.
    """
    if isinstance(head, MultiInstanceBBoxHead):
        return head.scores(logits)
    scores = head.loss_cls.get_activation(logits) if head.custom_cls_channels else softmax(logits)
    return scores[..., :-1]


class Boxes(nn.Module):
    """All stages of the box heads, and the last one's post-processing."""

    def __init__(self, roi_head: nn.Module, config: NmsConfig, cap: int = 0, plugin: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            RegionBranch(roi_head, 'bbox', stage, bool(cap)) for stage in range(stages_of(roi_head))
        )
        self.config, self.cap, self.plugin = config, cap, plugin
        self.compares_products = compares_products()
        self.padding = padded_rows(roi_head) if len(self.stages) == 1 else ''
        self.inverted = coder_of(self.stages[-1].head).type in INVERTING_CODERS

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        proposals: torch.Tensor,
        present: torch.Tensor,
        clip_hw: torch.Tensor,
        scale_factor: torch.Tensor,
        stage_tensors: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5) x1 y1 x2 y2 score, best first, and labels (B, n) int64, -1 for padding.

        With a cap also the number of candidates (B,) int64 before it.

        Args:
            maps: of `regions.region_maps`, (B, channels, h, w) each.
            proposals: (B, K, 4) xyxy, pixels of the network input.
            present: (B, K) bool; other rows are padding.
            clip_hw: (B, 2) h, w to clip to, pixels.
            scale_factor: (B, 4) `w h w h`, input / original.
            stage_tensors: gets a dict per stage: `region_features_<stage>` (B * K, channels, h, w),
                `output_names` (B, K, columns), and behind the first stage `regions_<stage>` (B, K, 4).
        """
        regions, logits = proposals, []
        for index, stage in enumerate(self.stages):
            outputs = stage(maps, regions, stage_tensors)
            scores, *deltas = (tensor.reshape(*regions.shape[:2], -1) for tensor in outputs)
            if self.padding:
                padding = is_padding(regions, self.padding)
                scores = torch.where(padding, 0.0, scores)
                if not isinstance(stage.head, bbox_heads.SABLHead):
                    deltas = [torch.where(padding, 0.0, tensor) for tensor in deltas]
            logits.append(scores)
            if stage_tensors is not None:
                tensors = stage_tensors[-1] | dict(
                    zip(output_names(stage.head), (scores, *deltas), strict=True)
                )
                stage_tensors[-1] = {f'regions_{index}': regions} if index else {}
                stage_tensors[-1] |= {f'{name}_{index}': tensor for name, tensor in tensors.items()}
            boxes, factors = decoded(stage.head, regions, deltas, clip_hw)
            if index + 1 < len(self.stages):
                regions = _of_best_class(stage.head, boxes, scores)
        scores = activated(self.stages[-1].head, sum(logits) / float(len(logits)))
        boxes = boxes / scale_factor[:, None, None]
        config = self.config
        if factors is not None and self.compares_products:
            scores, factors = scores * factors[..., None], None
        candidates = (scores > config.score_thr) & present[..., None]
        if factors is not None:
            scores = scores * factors[..., None]
        scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores)
        boxes = boxes.expand(-1, -1, scores.shape[2], -1)
        if isinstance(self.stages[-1].head, MultiInstanceBBoxHead):
            return of_pairs(boxes.flatten(1, 2), scores.flatten(1), config)
        suppress = Suppression(
            config.iou_threshold,
            config.max_per_img,
            config.class_agnostic,
            cap=self.cap,
            inverted=self.inverted,
            soft=config if config.method else None,
            plugin_classes=self.stages[-1].head.num_classes if self.plugin else 0,
        )
        return suppress(*(tensor.flatten(1, 2) for tensor in (boxes, scores, labels, candidates)))


def of_pairs(boxes: torch.Tensor, scores: torch.Tensor, config: NmsConfig) -> tuple[torch.Tensor, ...]:
    """Return dets (B, n, 5) and labels (B, n) of pairs of boxes (B, 2 * K, 4), which spare each other.

    `scores` (B, 2 * K) of no candidate are `NO_CANDIDATE`. Too many results end behind the first regions.
    """
    boxes = torch.cat([boxes, boxes.new_zeros(1, 1, 4).expand(boxes.shape[0], -1, -1)], 1)  # never empty
    scores = torch.cat([scores, torch.full_like(boxes[:, :1, 0], NO_CANDIDATE)], 1)
    ranked, rows = scores.sort(1, descending=True)
    ranks = torch.arange(boxes.shape[1], device=boxes.device)
    regions = torch.div(rows, PAIR, rounding_mode='floor')
    suppressed = (pairwise_iou(gather_rows(boxes, rows)) > config.iou_threshold) & (ranks[:, None] > ranks)
    suppressed = suppressed & (regions[:, :, None] != regions[:, None])
    keep = (greedy_keep_batch(suppressed) & (ranked > NO_CANDIDATE)).to(scores.dtype)
    keep = torch.zeros_like(scores).scatter(1, rows, keep)
    keep = (keep > 0) & (keep.cumsum(1) <= config.max_per_img)
    scores = torch.where(keep, scores, torch.full_like(scores, NO_CANDIDATE))
    best = Suppression(config.iou_threshold, config.max_per_img, suppresses=False)
    return best(boxes, scores, torch.zeros_like(rows), keep)


def _of_best_class(head: nn.Module, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    if boxes.shape[2] == 1:
        return boxes[:, :, 0]
    if head.custom_activation:
        scores = head.loss_cls.get_activation(scores)
    best = scores[..., :-1].argmax(dim=2)
    return boxes.gather(2, best[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]


class Grid(nn.Module):
    """Grid R-CNN: maps of points of every detection, and the box that the points vote for."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__()
        self.pool, self.head = Pool(roi_head.grid_roi_extractor, constant), grid_of(roi_head)
        side, points = self.head.grid_size, range(self.head.grid_points)
        columns, rows = ([point // side for point in points], [point % side for point in points])
        ends = [(columns, 0), (rows, 0), (columns, side - 1), (rows, side - 1)]
        self.sides = [[point for point in points if places[point] == end] for places, end in ends]
        corners = torch.tensor(self.head.sub_regions)[:, :2]
        self.register_buffer('corners', corners, persistent=False)

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        """Return dets (B, n, 5) with the boxes of the votes, divided by `scale_factor` (B, 4).

        `dets` (B, n, 5) are in pixels of the network input; rows of label -1 become zero.
        """
        images = torch.arange(dets.shape[0], device=dets.device)[:, None].expand(-1, dets.shape[1])
        boxes = dets[..., :4].flatten(0, 1)
        logits = self.head(self.pool(maps, boxes, images.flatten()))['fused']
        side = logits.shape[-1]
        votes, cells = logits.sigmoid().flatten(2).max(dim=2)
        cells = torch.stack([cells % side, cells // side], dim=2) + self.corners
        size = (boxes[:, 2:] - boxes[:, :2])[:, None]
        places = (cells.to(boxes) + 0.5) / side * size + (boxes[:, None, :2] - size / 2)
        sides = [
            (places[:, points, axis % 2] * votes[:, points]).sum(dim=1) / votes[:, points].sum(dim=1)
            for axis, points in enumerate(self.sides)
        ]
        voted = torch.stack(sides, dim=1).reshape(*dets.shape[:2], 4)
        voted = torch.cat([voted / scale_factor[:, None], dets[..., 4:]], dim=2)
        return (torch.where(labels[..., None] >= 0, voted, torch.zeros_like(voted)),)
