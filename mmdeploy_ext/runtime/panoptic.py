"""Panoptic maps without PyTorch: their segments, and the two ways in which mmdet fuses masks into a map.

A pixel of a map has the class of its segment, and of a thing also its number: class + number * 1000, as in
mmdet. The things of all classes are numbered together, from 1 on. A pixel of no segment has the number of
classes.

Source of the algorithms: mmdet 2.28.2 `seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py`
(`panoptic_postprocess`) and `heuristic_fusion_head.py`.

Glossary: B images, Q queries, C classes, S classes of stuff, n instances or segments, H4, W4 a quarter of the
network input, h, w size of the map.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.detections import Scored, mask_place
from mmdeploy_ext.runtime.geometry import softmax
from mmdeploy_ext.runtime.mask_resize import resizing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OFFSET = 1000
"""Factor of the number of a thing in a pixel's value, mmdet's `INSTANCE_OFFSET`."""
RATIO = 4
"""Pixels of the network input per pixel of logits."""
FAINTEST = -80.0
"""Logits below this count as this; see `exporting/postprocess/panoptic.py`."""


@dataclasses.dataclass(frozen=True)
class Segments(Scored):
    """Segments of one image, which share no pixel; all scores are 1, as mmdet gives none.

    Attributes:
        masks: (n, h, w) bool.
        scores: (n,) float32.
        labels: (n,) int64 class indices.
        ids: (n,) int64 values of a panoptic map.
    """

    scored = False
    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    @classmethod
    def of_map(cls, panoptic: np.ndarray, classes: int) -> Segments:
        """Return the segments of a map (h, w) of `classes` classes; a pixel of this value is in none."""
        ids = np.unique(panoptic).astype(np.int64)
        ids = ids[ids != classes]
        masks = panoptic[None] == ids[:, None, None]
        return cls(masks, np.ones(len(ids), np.float32), ids % OFFSET, ids)

    def to_map(self, classes: int) -> np.ndarray:
        """Return the map (h, w) int32; pixels of no segment are `classes`."""
        panoptic = np.full(self.masks.shape[1:], classes, np.int32)
        for mask, segment_id in zip(self.masks, self.ids, strict=True):
            panoptic[mask] = segment_id
        return panoptic

    def to_mmdet_result(self, num_classes: int) -> dict[str, np.ndarray]:
        """Return a dict with `pan_results`, the map (h, w) int32."""
        return dict(pan_results=self.to_map(num_classes))

    def place(self, index: int) -> dict[str, Any]:
        """Return `area`, `bbox_xyxy`, `segmentation` and `id` of a segment.

        The first three are those of `mask_place`, `id` is its value in the map.
        """
        return dict(mask_place(self.masks[index]), id=int(self.ids[index]))


def segments_of(outputs: Mapping[str, np.ndarray], classes: int) -> list[Segments]:
    """Return the segments per image of a `full` graph, whose output is `panoptic` (B, h, w) int32.

    `classes` is the number of classes, of things and of stuff.

    Raises:
        ModelFileError: the map holds a negative value, or one of a class that the model does not have.
    """
    panoptic = outputs['panoptic']
    wrong = (panoptic < 0) | ((panoptic % OFFSET >= classes) & (panoptic != classes))
    if wrong.any():
        raise ModelFileError(
            f'panoptic: a pixel is {int(panoptic[wrong][0])}, which is no class + number * {OFFSET} of '
            f'{classes} classes, nor {classes}, which says that it is in no segment'
        )
    return [Segments.of_map(image, classes) for image in panoptic]


def resized(logits: np.ndarray, img_shape: Sequence[float], ori_shape: Sequence[int]) -> np.ndarray:
    """Return logits (n, h, w) of (n, H4, W4) resized to the input, cut to the image, resized to the original.

    `img_shape` is the height and width of the image in the input, before padding, `ori_shape` that of the
    original, both in pixels; 0 stands for the side of the whole input.
    """
    rows, columns = resizing(logits.shape[1:], img_shape, ori_shape, RATIO)
    return rows @ (logits @ columns.T)


def fuse_queries(logits: np.ndarray, values: np.ndarray, facts: Any) -> np.ndarray:
    """Return a map (h, w) int32 in which every pixel belongs to the query that is surest of it.

    That is the one, of those above `object_mask_thr` whose best class is not "no class", with the largest
    product of its class score and the sigmoid of its mask there. Pixels of a query that `iou_thr` refuses are
    in no segment.

    Args:
        logits: (Q, C + 1) of the classes; the last column is no class.
        values: (Q, h, w) logits of the masks.
        facts: facts of the model: `num_classes` C, `num_things` (the first classes are things),
            `object_mask_thr` (score that a query has to exceed), `iou_thr` (least ratio of the pixels that
            belong to a query to those of its mask), `filter_low_score` (whether it gets only pixels that are
            in its mask, too).
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
    """Return a map (h, w) int32 of instances, the best first, over a semantic map.

    Args:
        masks: (n, h, w) bool.
        labels: (n,) classes of the instances.
        semantic: (S + 1, h, w) logits of stuff; the last class is no stuff.
        facts: facts of the model: `num_classes` C, `num_things` (the first classes are things),
            `mask_overlap` (largest share of an instance that better ones may cover, without those that are
            left out for it), `stuff_area_limit` (least pixels of a class of stuff).
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
