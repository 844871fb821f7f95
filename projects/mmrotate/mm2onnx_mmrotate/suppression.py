"""mmrotate's suppression of scored boxes, `multiclass_nms_rotated`, for a batch of images.

Glossary: B batch, A priors, C classes, N pairs of prior and class, n result rows.
Source: mmrotate 0.3.4 `core/post_processing/bbox_nms_rotated.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.contract.facts import Facts
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.nms import BELOW_ALL
from mmdeploy_ext.exporting.ops.rotated_nms import rotated_keep
from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE, capped, gather_rows, limit, number

LIMITS = ('nms_pre', 'max_per_img')
"""Entries of `test_cfg` that limit numbers of boxes."""


@dataclasses.dataclass(frozen=True)
class RotatedNmsConfig(Facts):
    """What `test_cfg` decides about results.

    Attributes:
        score_thr: class scores (before the score factor) must exceed this.
        nms_pre: priors kept per level, by their best score times the score factor; -1 keeps all. Callers of
            `RotatedSuppression` choose them.
        iou_threshold: boxes whose IoU with a better one of their class is this or more are suppressed.
        max_per_img: results kept per image; -1 keeps all.
    """

    score_thr: float
    nms_pre: int
    iou_threshold: float
    max_per_img: int


def rotated_nms_config(test_cfg: Mapping[str, Any]) -> RotatedNmsConfig:
    """Read a `test_cfg` of mmrotate; a limit of `LIMITS` that is missing, or not positive, becomes -1.

    ConfigError: `score_thr` or `nms.iou_thr` is missing, or an entry is no number.
    """
    nms = test_cfg.get('nms') or {}
    if nms.get('iou_thr') is None:
        raise ConfigError(f'test_cfg.nms: got {dict(nms)}; expected iou_thr')
    limits = {name: number(name, test_cfg.get(name, -1), int) for name in LIMITS}
    return RotatedNmsConfig(
        score_thr=number('score_thr', test_cfg.get('score_thr'), float),
        iou_threshold=number('nms.iou_thr', nms['iou_thr'], float),
        **{name: value if value > 0 else -1 for name, value in limits.items()},
    )


@dataclasses.dataclass(frozen=True)
class RotatedSuppression:
    """Threshold of scores, greedy NMS within classes, and the best results in descending score order.

    Attributes:
        config: the settings.
        cap: pairs of box and class that enter, the best by score times factor; 0 lets all in. With a cap
            every shape is constant.
    """

    config: RotatedNmsConfig
    cap: int = 0

    def __call__(self, boxes: Tensor, scores: Tensor, factors: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the boxes that are not suppressed.

        Args:
            boxes: (B, A, 5) x, y, width, height, angle in radians from x towards y, or (B, A, C, 5) of each
                class.
            scores: (B, A, C) of the classes, without the background.
            factors: (B, A) what scores are multiplied by once they have passed the threshold, or None.

        Returns:
            dets (B, n, 6) x, y, width, height, angle, score, and labels (B, n); n is the largest count of the
            batch, with a cap constant; rows that an image does not have are zero with label -1. With a cap
            also candidates (B,) int64, the number of pairs above `score_thr`, maybe more than `cap`.
        """
        num_classes = scores.shape[2]
        candidates = (scores > self.config.score_thr).flatten(1)
        if factors is not None:
            scores = scores * factors[..., None]
        flat_scores = scores.flatten(1)
        flat_scores = torch.where(candidates, flat_scores, torch.full_like(flat_scores, NO_CANDIDATE))
        counts = candidates.sum(dim=1)
        best, pairs = flat_scores.topk(self.cap or counts.max().clamp(min=1), dim=1)
        rows = torch.div(pairs, num_classes, rounding_mode='floor')
        labels = pairs - rows * num_classes
        boxes = gather_rows(boxes.flatten(1, 2), pairs) if boxes.dim() == 4 else gather_rows(boxes, rows)
        valid = best > NO_CANDIDATE
        keep = rotated_keep(class_offsets(boxes, labels, valid), valid, self.config.iou_threshold)
        best = torch.where(keep, best, torch.full_like(best, NO_CANDIDATE))
        if self.cap:
            best, order = best.topk(capped(self.cap, self.config.max_per_img), dim=1)
        else:
            best, order = best.topk(limit(self.config.max_per_img, best.shape[1]), dim=1)
            count = (best > NO_CANDIDATE).sum(dim=1).max()
            best, order = best[:, :count], order[:, :count]
        boxes, labels = gather_rows(boxes, order), labels.gather(1, order)
        present = best > NO_CANDIDATE
        dets = torch.cat([boxes, best[..., None]], dim=2)
        dets = torch.where(present[..., None], dets, torch.zeros_like(dets))
        labels = torch.where(present, labels, torch.full_like(labels, -1))
        return (dets, labels, counts) if self.cap else (dets, labels)


def class_offsets(boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return boxes (B, N, 5), those of each class shifted apart, so that one NMS suppresses within classes.

    x and y of each centre grow by its label, of `labels` (B, N) int64, times a sum: the largest coordinate of
    a centre plus the largest side plus 1, of the image's boxes that are `valid` (B, N) bool.
    """
    visible = torch.where(valid[..., None], boxes[..., :4], torch.full_like(boxes[..., :4], BELOW_ALL))
    largest = visible[..., :2].amax(dim=(1, 2)) + visible[..., 2:].amax(dim=(1, 2))
    offsets = labels.to(boxes.dtype) * (largest + 1)[:, None]
    return torch.cat([boxes[..., :2] + offsets[..., None], boxes[..., 2:]], dim=2)
