"""FlashOcc as a stream: images and calibration in, a class per voxel out, no memory."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.common.runtime.lift_splat import LiftFacts, LiftOnnx
from mm2onnx_driving.plugin_bevdet import PoolLoop
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.detections3d import in_range
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.runtime.occupancy import Instances, Occupancy
from mmdeploy_ext.spec.facts import Count, Facts, Positive, Range, optional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.metadata import Metadata


# Centres of objects from a head's maps, and the voxels that belong to them, in numpy.
#
# Glossary: K classes of centres, X, Y, Z voxels, n centres.


CENTER_MAPS = 'reg', 'height', 'heatmap'
"""Branches of the head, and outputs of the graph."""
VOXEL_CLASSES = 4, 10, 9, 3, 5, 2, 6, 7
"""Class of voxels of each class of centres; others have no instances. Source: bevdet_occ.py of FlashOCC."""
FIRST_ID = 18
"""Smaller numbers of upstream's instances are classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterFacts(Facts):
    """The settings of centres.

    Attributes:
        pc_origin: (x, y) metres of the heat map's first corner.
        voxel_size, out_size_factor: (x, y) metres and number of voxels per cell of the heat map.
        max_num: peaks that are decoded.
        score_threshold: exclusive.
        post_center_range: lowest x, y, z, then highest, metres.
        voxel_low, voxel_step: of the occupancy: first corner and size of the voxels, x, y, z, metres.
    """

    pc_origin: tuple[float, float]
    voxel_size: tuple[Positive, Positive]
    out_size_factor: Count
    max_num: Count
    score_threshold: float
    post_center_range: Range
    voxel_low: tuple[float, float, float]
    voxel_step: tuple[Positive, Positive, Positive]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlashOccFacts(LiftFacts):
    """The settings of the view, and of `centers` if there is their head."""

    centers: CenterFacts | None = optional(None)


def peaks(heat: np.ndarray) -> np.ndarray:
    """Return a map (K, Y, X) with 0 beside larger values."""
    rows, columns = heat.shape[1:]
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)))
    around = [
        padded[:, row : row + rows, column : column + columns] for row in range(3) for column in range(3)
    ]
    return np.where(heat == np.max(around, axis=0), heat, np.float32(0))


def instances_of(labels: np.ndarray, maps: Mapping[str, np.ndarray], facts: CenterFacts) -> Instances:
    """Return the instances of voxels (X, Y, Z) with classes `labels`.

    `maps` are `reg` (1, 2, Y, X) cells, `height` (1, 1, Y, X) m and `heatmap` (1, K, Y, X) logits.
    """
    heat = peaks(exact_sigmoid(maps['heatmap'][0]))
    _, rows, columns = heat.shape
    scores = heat.reshape(-1)
    best = top_rows(scores, facts.max_num)
    classes, cells = np.divmod(best, rows * columns)
    shift, height = (maps[name][0].reshape(-1, rows * columns)[:, cells].T for name in ('reg', 'height'))
    grid = np.stack([cells % columns, cells // columns], 1).astype(np.float32)
    xy = (grid + shift) * np.float32(facts.out_size_factor)
    xy = xy * np.float32(facts.voxel_size) + np.float32(facts.pc_origin)
    places = np.concatenate([xy, height], 1)
    kept = in_range(places, facts.post_center_range) & (scores[best] > np.float32(facts.score_threshold))
    places, classes = places[kept], classes[kept]
    voxels = ((places - np.float32(facts.voxel_low)) / np.float32(facts.voxel_step)).astype(np.int32)
    rows_of = nearest(labels, voxels, classes)
    return Instances(rows_of, places, scores[best][kept], classes)


def nearest(labels: np.ndarray, voxels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the row (X, Y, Z) int32 of the nearest centre of a voxel's class, the first of equals, or -1."""
    found = np.full(labels.shape, -1, np.int32)
    for center_class, voxel_class in enumerate(VOXEL_CLASSES):
        rows, places = np.flatnonzero(classes == center_class), np.argwhere(labels == voxel_class)
        if len(rows) and len(places):
            own = voxels[rows].astype(np.int64)
            for part in np.array_split(places, 1 + len(places) // 4096):
                apart = (own**2).sum(1) - 2 * part @ own.T
                found[tuple(part.T)] = rows[apart.argmin(1)]
    return found


FORM, LOGITS, LABELS = 'flashocc', 'occ_logits', 'occupancy'
"""Name of the graph, and of its outputs."""


class FlashOccOnnx(LiftOnnx):
    families, files = ('flashocc',), (FORM,)


class PooledOnnx(PoolLoop, FlashOccOnnx):
    """A file of FlashOcc's TensorRT converter, with `output_0`, logits, or `cls_occ_label`, classes."""

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        ((name, output),) = super().run(frame, memory).items()
        return {LOGITS: output} if name == 'output_0' else {LABELS: output[0]}


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Occupancy:
    labels = outputs[LABELS] if LABELS in outputs else outputs[LOGITS][0].argmax(-1)
    occupancy = Occupancy(labels.astype('uint8'), None, len(metadata.classes) - 1)
    if not metadata.postprocess.centers:
        return occupancy
    return occupancy.with_instances(instances_of(labels, outputs, metadata.postprocess.centers))


QUANTISED, OPENS, RESULT = FORM, FlashOccOnnx, Occupancy
