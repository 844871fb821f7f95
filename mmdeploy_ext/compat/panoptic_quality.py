"""The part of panopticapi that mmdet uses: colours of segments, and panoptic quality over images.

panopticapi is in no package registry, so that an environment may lack it. mmdet matches segments with code of
its own; what is left is the sum of Kirillov et al., "Panoptic Segmentation" (arXiv:1801.00868, section 4.1):
PQ = sum of IoU / (TP + FP / 2 + FN / 2) of every class, and the mean over the classes that occur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

VOID, OFFSET = 0, 256**3
"""The number that stands for no segment, in the pixels that have none; and the number of colours."""
FIGURES = ('pq', 'sq', 'rq')
"""Panoptic, segmentation and recognition quality."""


def rgb2id(colour: np.ndarray) -> np.ndarray:
    """Return the numbers of segments (h, w) int64 of a picture (h, w, 3) uint8, RGB: r + 256 g + 256^2 b."""
    return np.asarray(colour).astype(np.int64) @ np.array([1, 256, 256**2])


def id2rgb(segments: np.ndarray) -> np.ndarray:
    """Return the picture (h, w, 3) uint8, RGB, of numbers of segments (h, w), integers in 0..`OFFSET` - 1."""
    segments = np.asarray(segments, np.int64)
    return np.stack([segments // 256**place % 256 for place in range(3)], axis=-1).astype(np.uint8)


@dataclasses.dataclass
class ClassCount:
    """Sums of one class.

    Attributes:
        iou: sum of the IoU of all matched pairs.
        tp: matched pairs.
        fp: predicted segments without a pair.
        fn: true segments without a pair.
    """

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def figures(self) -> dict[str, float] | None:
        """Return `pq`, `sq` and `rq`, panoptic, segmentation and recognition quality in 0..1.

        None is returned of a class that does not occur.
        """
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not weight:
            return None
        segmentation_quality = self.iou / self.tp if self.tp else 0.0
        return dict(pq=self.iou / weight, sq=segmentation_quality, rq=self.tp / weight)


class PQStat(dict):
    """`category_id` -> `ClassCount`; looking up one that is not there adds it, with zeros."""

    def __missing__(self, category: int) -> ClassCount:
        return self.setdefault(category, ClassCount())

    def __iadd__(self, sums: PQStat) -> Self:
        """Add the sums of other images."""
        for category, count in sums.items():
            for name, value in vars(count).items():
                setattr(self[category], name, getattr(self[category], name) + value)
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Return the means over the classes that occur, and the figures of each class.

        Args:
            categories: `category_id` -> its entry, with `isthing`.
            isthing: True counts only things, False only stuff, None all.

        Returns:
            A dict of `FIGURES`, each the mean over the classes that occur, NaN if there are none, and of `n`,
            their number; and `category_id` -> its figures, which are 0 of a class that does not occur.
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
