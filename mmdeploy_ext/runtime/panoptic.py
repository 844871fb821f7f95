"""Panoptic maps without PyTorch: segments, and mmdet's two fusions of masks.

A pixel is its segment's class, plus number * 1000 for things, or the number of classes if unassigned. Source:
mmdet 2.28.2 `seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py` (`panoptic_postprocess`) and
`heuristic_fusion_head.py`.

B images, Q queries, C classes, S classes of stuff, n instances or segments, H4, W4 a quarter of the input, h,
w map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.runtime.detections import Scored, mask_place
from mmdeploy_ext.runtime.geometry import softmax
from mmdeploy_ext.runtime.mask_resize import resizing

OFFSET = 1000
"""mmdet's `INSTANCE_OFFSET`."""
RATIO = 4
"""Input pixels per pixel of logits."""
FAINTEST = -80.0
"""Lower bound of logits, see `exporting/postprocess/panoptic.py`."""


@dataclasses.dataclass(frozen=True)
class Segments(Scored):
    """Disjoint segments of one image, all of score 1.

    Attributes:
        masks: (n, h, w) bool.
        ids: (n,) int64 values of the map.
    """

    scored = False
    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    @classmethod
    def of_map(cls, panoptic: np.ndarray, classes: int) -> Segments:
        """Segments of a map (h, w); the value `classes` is unassigned."""
        ids = np.unique(panoptic).astype(np.int64)
        ids = ids[ids != classes]
        masks = panoptic[None] == ids[:, None, None]
        return cls(masks, np.ones(len(ids), np.float32), ids % OFFSET, ids)

    def to_map(self, classes: int) -> np.ndarray:
        """Map (h, w) int32; unassigned pixels are `classes`."""
        panoptic = np.full(self.masks.shape[1:], classes, np.int32)
        for mask, segment_id in zip(self.masks, self.ids, strict=True):
            panoptic[mask] = segment_id
        return panoptic

    def to_mmdet_result(self, num_classes: int) -> dict[str, np.ndarray]:
        return dict(pan_results=self.to_map(num_classes))

    def place(self, index: int) -> dict[str, Any]:
        return dict(mask_place(self.masks[index]), id=int(self.ids[index]))


def segments_of(outputs: Mapping[str, np.ndarray], classes: int) -> list[Segments]:
    """Segments per image of a `full` graph's `panoptic` (B, h, w) int32."""
    panoptic = outputs['panoptic']
    wrong = (panoptic < 0) | ((panoptic % OFFSET >= classes) & (panoptic != classes))
    if wrong.any():
        raise ModelFileError(
            f'panoptic: a pixel is {int(panoptic[wrong][0])}; expected class + number * {OFFSET} with one '
            f'of {classes} classes, or {classes} for no segment'
        )
    return [Segments.of_map(image, classes) for image in panoptic]


def resized(logits: np.ndarray, img_shape: Sequence[float], ori_shape: Sequence[int]) -> np.ndarray:
    """Resize logits (n, H4, W4) to the input, cut to `img_shape`, resize to `ori_shape` (0: whole input)."""
    rows, columns = resizing(logits.shape[1:], img_shape, ori_shape, RATIO)
    return rows @ (logits @ columns.T)


def fuse_queries(logits: np.ndarray, values: np.ndarray, facts: Any) -> np.ndarray:
    """Map (h, w) int32 by the query with the largest class score times mask sigmoid at each pixel.

    `logits` (Q, C + 1), last column no class; `values` (Q, h, w) mask logits. `facts`: `num_classes`,
    `num_things`, `object_mask_thr` (least score), `iou_thr` (least ratio of won to mask pixels),
    `filter_low_score` (only pixels in the mask).
    """
    classes, chances = facts.num_classes, softmax(logits)
    scores, labels = chances.max(1), chances.argmax(1)
    accepted = (labels != classes) & (scores > np.float32(facts.object_mask_thr))
    panoptic = np.full(values.shape[1:], classes, np.int32)
    if not accepted.any():
        return panoptic
    values = values[accepted]
    doubts = (1 + np.exp(-np.maximum(values, np.float32(FAINTEST)))) / scores[accepted, None, None]
    owner, number = doubts.argmin(0), 0
    for index, label in enumerate(labels[accepted]):
        owned, inside = owner == index, values[index] >= 0
        area, original = int(owned.sum()), int(inside.sum())
        if not area or not original or area / original < facts.iou_thr:
            continue
        value = label
        if label < facts.num_things:
            number += 1
            value = label + OFFSET * number
        panoptic[owned & inside if facts.filter_low_score else owned] = value
    return panoptic


def fuse_instances(masks: np.ndarray, labels: np.ndarray, semantic: np.ndarray, facts: Any) -> np.ndarray:
    """Map (h, w) int32 of instances, best first, over a semantic map.

    `masks` (n, h, w) bool, `labels` (n,), `semantic` (S + 1, h, w) logits with no stuff last. `facts`:
    `num_classes`, `num_things` (things come first), `mask_overlap` (largest covered share of an instance),
    `stuff_area_limit` (least pixels per class of stuff).
    """
    classes, things = facts.num_classes, facts.num_things
    panoptic = (semantic.argmax(0) + things).astype(np.int32)
    occupied, number = np.zeros(panoptic.shape, bool), 0
    for mask, label in zip(masks, labels, strict=True):
        area, overlap = np.float32(mask.sum()), np.float32((mask & occupied).sum())
        if not area or overlap / (area + np.float32(1e-5)) > np.float32(facts.mask_overlap):
            continue
        number += 1
        panoptic[mask & ~occupied] = label + OFFSET * number
        occupied |= mask
    for label in range(things, classes):
        segment = panoptic == label
        if segment.sum() < facts.stuff_area_limit:
            panoptic[segment] = classes
    return panoptic
