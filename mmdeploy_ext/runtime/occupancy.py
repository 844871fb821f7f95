"""The class of each voxel around the car, and its pictures. Needs OpenCV and numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmdeploy_ext.runtime.bird_eye import DARK, BoxLayer
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw import class_colour, class_name, write
from mmdeploy_ext.runtime.draw3d import GAP, camera_mosaic

if TYPE_CHECKING:
    from typing import Self

NO_BOXES = Detections3D(np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
SCALE = 4
"""Least pixels of a voxel in a slice."""


@dataclasses.dataclass(frozen=True)
class Instances:
    """The objects that voxels belong to: each to the nearest centre of its class.

    Attributes:
        rows: (X, Y, Z) int32 row of a voxel's centre, -1 for none.
        places: (n, 3) float32 x, y, z of the centres, metres.
        scores: (n,) float32.
        labels: (n,) int64 classes of the centres' head.
        sure: (n,) bool; False: rounding decides whether this is a centre. None: all are sure.
        cells: (n, 2, 3) int32 lowest and highest voxel of a centre that rounding allows; None: unknown.
    """

    rows: np.ndarray
    places: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    sure: np.ndarray | None = None
    cells: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """The classes of a grid's voxels.

    Attributes:
        labels: (X, Y, Z) uint8; x ahead, y left, z up in the frame of the model.
        leads: (X, Y, Z) float32 score of the best class minus that of the second; None: unknown.
        free: class of empty voxels.
        instance_rows, instance_places, instance_scores, instance_labels, instance_sure, instance_cells: of
            `instances`; None without a head of centres.
    """

    labels: np.ndarray
    leads: np.ndarray | None
    free: int
    instance_rows: np.ndarray | None = None
    instance_places: np.ndarray | None = None
    instance_scores: np.ndarray | None = None
    instance_labels: np.ndarray | None = None
    instance_sure: np.ndarray | None = None
    instance_cells: np.ndarray | None = None

    @property
    def instances(self) -> Instances | None:
        if self.instance_rows is None:
            return None
        names = [field.name for field in dataclasses.fields(Instances)]
        return Instances(**{name: getattr(self, f'instance_{name}') for name in names})

    def with_instances(self, instances: Instances) -> Self:
        fields = dataclasses.fields(Instances)
        given = {f'instance_{field.name}': getattr(instances, field.name) for field in fields}
        return dataclasses.replace(self, **given)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.labels != self.free))

    def above(self, score_thr: float) -> Self:
        return self

    def to_json(self, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A dict per class that is there: `label`, `name`, `voxels`."""
        labels, counts = np.unique(self.labels, return_counts=True)
        pairs = zip(labels.tolist(), counts.tolist(), strict=True)
        entries = [dict(label=label, name=class_name(label, classes), voxels=count) for label, count in pairs]
        if self.instances is not None:
            for entry in entries:
                rows = np.unique(self.instances.rows[self.labels == entry['label']])
                entry['instances'] = int((rows >= 0).sum())
        return entries

    def frame_picture(
        self, images_bgr: Sequence[np.ndarray], lidar2img: np.ndarray, classes: Sequence[str], title: str
    ) -> np.ndarray:
        """Cameras, the view from above, and a slice along the way of the car, (h, w, 3) uint8 BGR."""
        mosaic = camera_mosaic(images_bgr, lidar2img, BoxLayer('', NO_BOXES), classes, 600)
        return beside(mosaic, grid_picture(self, classes, title, max(mosaic.shape[0], 440)))


def from_above(occupancy: Occupancy, values: np.ndarray | None = None) -> np.ndarray:
    """Return the class, or the `values` (X, Y, Z), of the highest voxel that is not free, (X, Y)."""
    labels = occupancy.labels
    highest = labels.shape[2] - 1 - (labels != occupancy.free)[..., ::-1].argmax(-1)
    return np.take_along_axis(labels if values is None else values, highest[..., None], -1)[..., 0]


def grid_picture(
    occupancy: Occupancy,
    classes: Sequence[str],
    title: str,
    side: int = 440,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the view from above, ahead is up, and below it the slice at the car, seen from the right.

    Voxels that are `marked` (X, Y, Z) bool are white; black lines are borders of instances.
    """
    marked = np.zeros(occupancy.labels.shape, bool) if marked is None else marked
    middle, height = occupancy.labels.shape[1] // 2, occupancy.labels.shape[2]
    above = _coloured(occupancy, from_above(occupancy), marked.any(-1))[::-1, ::-1]
    if occupancy.instances is not None:
        rows = from_above(occupancy, occupancy.instances.rows)[::-1, ::-1]
        above = cv2.resize(above, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
        above[_borders(np.kron(rows, np.ones((SCALE, SCALE), rows.dtype)))] = 0
    slice_ = _coloured(occupancy, occupancy.labels[:, middle], marked[:, middle]).transpose(1, 0, 2)[::-1]
    tall = max(round(side * height / occupancy.labels.shape[0]), SCALE * height)
    parts = [cv2.resize(above, (side, side), interpolation=cv2.INTER_NEAREST)]
    parts += [np.full((GAP, side, 3), DARK, np.uint8)]
    parts += [cv2.resize(slice_, (side, tall), interpolation=cv2.INTER_NEAREST)]
    picture = np.ascontiguousarray(np.vstack(parts))
    write(picture, title, (8, 20), 0.5)
    present = [label for label in np.unique(occupancy.labels).tolist() if label != occupancy.free]
    for row, label in enumerate(present):
        write(picture, class_name(label, classes), (8, 40 + 14 * row), 0.4, class_colour(label))
    return picture


def _coloured(occupancy: Occupancy, labels: np.ndarray, marked: np.ndarray) -> np.ndarray:
    colours = np.array([class_colour(label) for label in range(256)], np.uint8)
    colours[occupancy.free] = DARK
    picture = colours[labels]
    picture[marked] = 255
    return picture


def _borders(rows: np.ndarray) -> np.ndarray:
    """Return the first pixels of another instance, (h, w) bool."""
    borders = np.zeros(rows.shape, bool)
    borders[1:] |= rows[1:] != rows[:-1]
    borders[:, 1:] |= rows[:, 1:] != rows[:, :-1]
    return borders


def beside(*pictures: np.ndarray) -> np.ndarray:
    """Put pictures (h, w, 3) side by side; the sides of the result are even."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] + GAP for picture in pictures) - GAP
    canvas, left = np.full((height + height % 2, width + width % 2, 3), DARK, np.uint8), 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + GAP
    return canvas
