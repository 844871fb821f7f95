"""Post-processing of dense 2D heads, equal to mmdet 2.28.2's `BaseDenseHead.get_bboxes`.

Glossary: B batch, L levels, A anchors of one level, C classes, N candidates, n kept rows; pixels of the
network input.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.exporting.ops.fixed_nms import nms_of_sorted
from mmdeploy_ext.exporting.ops.nms import batched_nms, class_offsets
from mmdeploy_ext.exporting.postprocess.sizes import limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NO_CANDIDATE = -1.0


@dataclasses.dataclass(frozen=True)
class NmsConfig(Plain):
    """What `test_cfg` decides about dense post-processing.

    Attributes:
        score_thr: class scores (before the score factor) must exceed this.
        nms_pre: (anchor, class) pairs kept per level, by class score; -1 keeps all.
        iou_threshold: of the class-aware NMS.
        max_per_img: detections kept per image; -1 keeps all.
        class_agnostic: suppress across classes.
    """

    score_thr: float
    nms_pre: int
    iou_threshold: float
    max_per_img: int
    class_agnostic: bool = False


def nms_config(test_cfg: Mapping[str, Any]) -> NmsConfig:
    """Read an mmdet `test_cfg`.

    `deploy_nms_pre` replaces `nms_pre` when it is set: -1 = no top-k, K = K.

    Raises:
        ConfigError: an NMS type or option that the graph does not reproduce.
    """
    nms = dict(test_cfg.get('nms') or {})
    kind = nms.pop('type', 'nms')
    if kind != 'nms':
        raise ConfigError(
            f"test_cfg.nms.type={kind!r} has no ONNX form that gives the same detections; expected 'nms' "
            f'(--cfg-options model.test_cfg.nms.type=nms)'
        )
    iou_threshold = nms.pop('iou_threshold', None)
    class_agnostic = bool(nms.pop('class_agnostic', False))
    nms.pop('split_thr', None)
    if iou_threshold is None or nms:
        raise ConfigError(
            f'test_cfg.nms: got {dict(test_cfg.get("nms") or {})}; expected iou_threshold, and only '
            f'class_agnostic and split_thr beside it'
        )
    nms_pre = test_cfg.get('deploy_nms_pre')
    if nms_pre is None:
        nms_pre = test_cfg.get('nms_pre', -1)
    max_per_img = test_cfg.get('max_per_img', -1)
    for key, value in (('nms_pre', nms_pre), ('max_per_img', max_per_img)):
        if number(key, value, int) == 0 or value < -1:
            raise ConfigError(f'test_cfg.{key}={value}: expected a positive number, or -1 for no limit')
    return NmsConfig(
        score_thr=number('score_thr', test_cfg.get('score_thr', 0.0), float),
        nms_pre=int(nms_pre),
        iou_threshold=number('nms.iou_threshold', iou_threshold, float),
        max_per_img=int(max_per_img),
        class_agnostic=class_agnostic,
    )


def number(key: str, value: Any, kind: type) -> Any:
    """Return a value of `test_cfg` as `kind`, int or float.

    Raises:
        ConfigError: it is not a number of that kind; names the key.
    """
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or kind(value) != value:
        wanted = 'a whole number' if kind is int else 'a number'
        raise ConfigError(f'test_cfg.{key}={value!r}: expected {wanted}')
    return kind(value)


def _gather_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Pick rows (B, N) out of values (B, A, D)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


class DenseBoxPostprocess(nn.Module):
    """Score threshold, top-k per level, clipping, rescaling, class-aware NMS, order by descending score.

    The steps and their order are those of mmdet's `get_bboxes`: the threshold looks at class scores before
    the score factor, top-k runs over (anchor, class) pairs of one level, boxes are clipped to `img_shape`
    and divided by `scale_factor` before NMS.
    """

    def __init__(self, config: NmsConfig, clip_border: bool = True, cap: int = 0) -> None:
        """Keep the thresholds; they become constants of the graph.

        Args:
            config: of the head.
            clip_border: clip boxes to the image.
            cap: candidates that enter the suppression, the best by score; 0 lets all in. With a cap every
                shape is constant, and the suppression is written in standard operators.
        """
        super().__init__()
        self.config = config
        self.clip_border = clip_border
        self.cap = cap

    def forward(
        self,
        mlvl_bboxes: Sequence[torch.Tensor],
        mlvl_scores: Sequence[torch.Tensor],
        mlvl_factors: Sequence[torch.Tensor],
        clip_hw: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Turn decoded levels into detections.

        Args:
            mlvl_bboxes: per level (B, A, 4) xyxy, not clipped.
            mlvl_scores: per level (B, A, C) class scores after the sigmoid.
            mlvl_factors: per level (B, A) score factors (centerness) after the sigmoid.
            clip_hw: (B or 1, 2) float32 height and width that boxes are clipped to.
            scale_factor: (B or 1, 4) float32 `w h w h`; boxes are divided by it.

        Returns:
            dets (B, n, 5) float32 x1 y1 x2 y2 score, labels (B, n) int64; n is the largest count of
            the batch (with a cap: constant); rows that an image does not have are zero with label -1. With
            a cap also candidates (B,) int64, their number before it.
        """
        levels = [
            self._level_candidates(*level)
            for level in zip(mlvl_bboxes, mlvl_scores, mlvl_factors, strict=True)
        ]
        bboxes, class_scores, factors, labels = (
            torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
        )
        candidates = class_scores > self.config.score_thr
        bboxes = self._clip(bboxes, clip_hw) / scale_factor[:, None]
        scores = torch.where(candidates, class_scores * factors, torch.full_like(factors, NO_CANDIDATE))
        if self.cap:
            return self._capped(bboxes, scores, labels, candidates)
        kept = self._suppress(bboxes, scores, labels, candidates)
        return self._collect(bboxes, torch.where(kept, scores, torch.full_like(scores, NO_CANDIDATE)), labels)

    def _level_candidates(
        self, bboxes: torch.Tensor, scores: torch.Tensor, factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Pick the best (anchor, class) pairs of one level: boxes, class scores, factors, labels."""
        num_classes = scores.shape[2]
        flat = scores.flatten(1)
        if self.config.nms_pre > 0:
            values, pairs = flat.topk(limit(self.config.nms_pre, flat.shape[1]), dim=1)
        else:
            values, pairs = flat, torch.arange(flat.shape[1], device=flat.device).expand(flat.shape[0], -1)
        anchors = torch.div(pairs, num_classes, rounding_mode='floor')
        labels = pairs - anchors * num_classes
        return _gather_rows(bboxes, anchors), values, factors.gather(1, anchors), labels

    def _clip(self, bboxes: torch.Tensor, clip_hw: torch.Tensor) -> torch.Tensor:
        if not self.clip_border:
            return bboxes
        upper = torch.cat([clip_hw[:, 1:], clip_hw[:, :1]], dim=1).repeat(1, 2)[:, None]
        return torch.minimum(bboxes.clamp(min=0), upper)

    def _suppress(
        self, bboxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, N) bool: the rows that NMS keeps."""
        separated = bboxes if self.config.class_agnostic else class_offsets(bboxes, labels, candidates)
        most = self.config.max_per_img if self.config.max_per_img > 0 else 2**31 - 1
        selected = batched_nms(separated, scores[:, None], self.config.iou_threshold, most)
        flat_rows = selected[:, 0] * scores.shape[1] + selected[:, 2]
        flat_kept = (
            torch.zeros_like(scores)
            .flatten()
            .scatter(0, flat_rows, torch.ones_like(flat_rows, dtype=scores.dtype))
        )
        return flat_kept.reshape(scores.shape) > 0

    def _capped(
        self, bboxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return detections and the number of candidates, of the best `cap` rows, with constant shapes.

        Greedy suppression goes from the best score down, so rows behind the cut change nothing above it.
        """
        separated = bboxes if self.config.class_agnostic else class_offsets(bboxes, labels, candidates)
        best, rows = scores.topk(self.cap, dim=1)
        kept = nms_of_sorted(_gather_rows(separated, rows), self.config.iou_threshold)
        best = torch.where(kept, best, torch.full_like(best, NO_CANDIDATE))
        best, order = best.topk(capped(self.cap, self.config.max_per_img), dim=1)
        rows = rows.gather(1, order)
        return *_padded(best, _gather_rows(bboxes, rows), labels.gather(1, rows)), candidates.sum(dim=1)

    def _collect(
        self, bboxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sort by descending score, cut to the largest count of the batch, blank the padding."""
        best, rows = scores.topk(limit(self.config.max_per_img, scores.shape[1]), dim=1)
        count = (best > NO_CANDIDATE).sum(dim=1).max()
        best, rows = best[:, :count], rows[:, :count]
        return _padded(best, _gather_rows(bboxes, rows), labels.gather(1, rows))


def capped(*limits: int) -> int:
    """Return the smallest of several limits; those of 0 or below limit nothing."""
    return min(value for value in limits if value > 0)


def _padded(
    scores: torch.Tensor, bboxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dets (B, n, 5) and labels (B, n); rows without a candidate are zero with label -1."""
    present = scores > NO_CANDIDATE
    dets = torch.cat([bboxes, scores[..., None]], dim=2)
    dets = torch.where(present[..., None], dets, torch.zeros_like(dets))
    return dets, torch.where(present, labels, torch.full_like(labels, -1))
