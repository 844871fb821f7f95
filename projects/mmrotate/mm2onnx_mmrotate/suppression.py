"""mmrotate's suppression of scored boxes, `multiclass_nms_rotated`, for a batch of images.

Glossary: B batch, A priors, C classes, N pairs of prior and class, n result rows.
Source: mmrotate 0.3.4 `core/post_processing/bbox_nms_rotated.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE, Suppression, gather_rows, number
from mmdeploy_ext.families.heads import NmsConfig
from mmdeploy_ext.families.images import ConfigError

LIMITS = ('nms_pre', 'max_per_img')
"""Entries of `test_cfg` that limit numbers of boxes."""


def rotated_nms_config(test_cfg: Mapping[str, Any]) -> NmsConfig:
    """Read a `test_cfg` of mmrotate; a limit of `LIMITS` that is missing, or not positive, becomes -1.

    ConfigError: `score_thr` or `nms.iou_thr` is missing, or an entry is no number.
    """
    nms = test_cfg.get('nms') or {}
    if nms.get('iou_thr') is None:
        raise ConfigError(f'test_cfg.nms: got {dict(nms)}; expected iou_thr')
    limits = {name: number(name, test_cfg.get(name, -1), int) for name in LIMITS}
    return NmsConfig(
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

    config: NmsConfig
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
        suppress = Suppression(
            self.config.iou_threshold, self.config.max_per_img, trimmed=not self.cap, rotated=True
        )
        dets, labels = suppress(boxes, best, labels, valid)
        return (dets, labels, counts) if self.cap else (dets, labels)
