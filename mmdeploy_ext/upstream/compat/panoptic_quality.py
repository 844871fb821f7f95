"""The part of panopticapi that mmdet uses: colours of segments, and panoptic quality.

Kirillov et al., "Panoptic Segmentation" (arXiv:1801.00868, section 4.1): PQ = sum of IoU / (TP + FP / 2 + FN
/ 2) per class, and the mean over occurring classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import Self

VOID, OFFSET = 0, 256**3
"""Number of pixels without a segment; number of colours."""
FIGURES = ('pq', 'sq', 'rq')
"""Panoptic, segmentation and recognition quality."""


def rgb2id(colour: np.ndarray) -> np.ndarray:
    """Numbers of segments (h, w) int64 of RGB (h, w, 3) uint8: r + 256 g + 256^2 b."""
    return np.asarray(colour).astype(np.int64) @ np.array([1, 256, 256**2])


def id2rgb(segments: np.ndarray) -> np.ndarray:
    """RGB (h, w, 3) uint8 of numbers of segments (h, w)."""
    segments = np.asarray(segments, np.int64)
    return np.stack([segments // 256**place % 256 for place in range(3)], axis=-1).astype(np.uint8)


@dataclasses.dataclass
class ClassCount:
    """Sums of one class: IoU of matched pairs, pairs, unmatched predicted and true segments."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def figures(self) -> dict[str, float] | None:
        """`pq`, `sq` and `rq` in 0..1, or None if the class does not occur."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not weight:
            return None
        segmentation_quality = self.iou / self.tp if self.tp else 0.0
        return dict(pq=self.iou / weight, sq=segmentation_quality, rq=self.tp / weight)


class PQStat(dict):
    def __missing__(self, category: int) -> ClassCount:
        return self.setdefault(category, ClassCount())

    def __iadd__(self, sums: PQStat) -> Self:
        for category, count in sums.items():
            for name, value in vars(count).items():
                setattr(self[category], name, getattr(self[category], name) + value)
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Means over occurring classes (`FIGURES`, NaN if none, and `n`), and figures per `category_id`.

        `isthing` True counts things, False stuff, None all.
        """
        by_category = {
            key: self[key].figures()
            for key, entry in categories.items()
            if isthing is None or bool(entry['isthing']) == isthing
        }
        occurring = [figures for figures in by_category.values() if figures]
        count = len(occurring) or float('nan')
        means = {name: sum(figures[name] for figures in occurring) / count for name in FIGURES}
        return dict(means, n=len(occurring)), {
            key: figures or dict.fromkeys(FIGURES, 0.0) for key, figures in by_category.items()
        }
