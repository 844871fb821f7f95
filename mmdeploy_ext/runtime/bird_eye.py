"""Pictures of boxes from above, LiDAR frame in metres. n boxes, P points. Needs OpenCV and numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.runtime.draw import class_colour, class_name, track_colour, write
from mmdeploy_ext.runtime.geometry import box_corners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.draw import Colour


# Non-maximum suppression of boxes from above, as in mmdet3d. n boxes in descending score order.


def circle_nms(centres: np.ndarray, threshold: float) -> np.ndarray:
    """Ascending indices of boxes without a better kept box nearby.

    `centres` (n, 2) metres, best first; `threshold` bounds the *squared* distance, inclusively.
    Source: mmdet3d 1.0.0rc6, core/post_processing/box3d_nms.py `circle_nms`.
    """
    keep: list[int] = []
    for index, centre in enumerate(centres):
        gap = centres[keep] - centre
        if not (gap[:, 0] ** 2 + gap[:, 1] ** 2 <= threshold).any():
            keep.append(index)
    return np.array(keep, np.int64)


def rotated_nms(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Ascending indices of boxes with an IoU below `threshold` with better kept boxes.

    Boxes (n, 5), best first: x, y of the centre, sides along x and y before the turn, angle in radians from x
    to y. At 0 or less only the first is kept. Source: mmcv 1.7.2 `nms_rotated` on the CPU (a GPU keeps an IoU
    equal to `threshold`).
    """
    if threshold <= 0:
        return np.arange(min(len(boxes), 1))
    from mmdeploy_ext.runtime import rotated_loops

    boxes = np.ascontiguousarray(boxes, np.float32)
    return np.flatnonzero(rotated_loops.keep_best(boxes, np.float32(threshold)))


def intersection_area(corners: np.ndarray, other_corners: np.ndarray) -> float:
    return float(intersection_areas(corners[None], other_corners[None])[0])


def intersection_areas(corners: np.ndarray, other_corners: np.ndarray) -> np.ndarray:
    from mmdeploy_ext.runtime import bev_loops

    return bev_loops.intersection_areas(*map(np.ascontiguousarray, (corners, other_corners)))


WHITE, PALE, DARK, GREY = (255, 255, 255), (225, 225, 225), (32, 30, 28), (110, 105, 100)
EXTENT = 61.2
RING_SPACING_M, MOST_RINGS = 20, 20
FARTHEST_PIXEL = 1e6
"""From the picture's corner; boxes may lie at 1e30 m."""
MIN_SPEED = 0.3
"""m/s; slower boxes have no arrow."""
POINT_HEIGHTS = -2.0, 1.5


@dataclasses.dataclass(frozen=True)
class BoxLayer:
    """One list of boxes of a picture, drawn whatever their scores; `marked` (n,) bool are in white."""

    title: str
    detections: Detections3D
    marked: np.ndarray | None = None

    def is_marked(self, index: int) -> bool:
        return self.marked is not None and bool(self.marked[index])

    def colour(self, index: int) -> Colour:
        if self.detections.ids is not None:
            return track_colour(int(self.detections.ids[index]))
        return class_colour(int(self.detections.labels[index]))

    def name(self, index: int, classes: Sequence[str]) -> str:
        name, ids = class_name(int(self.detections.labels[index]), classes), self.detections.ids
        return name if ids is None or ids[index] < 0 else f'{name} #{ids[index]}'

    def caption(self) -> str:
        count = len(self.detections)
        return f'{self.title}: {count} box' if count == 1 else f'{self.title}: {count} boxes'


def bird_eye(
    layers: Sequence[BoxLayer],
    classes: Sequence[str],
    side: int = 640,
    extent: float = EXTENT,
    forward: np.ndarray | None = None,
    points: np.ndarray | None = None,
) -> np.ndarray:
    """Draw boxes from above, (side, side, 3) uint8 BGR, with rings, ego, headings and velocities.

    A second layer is pale. `extent`: metres to the edge; `forward`: (2,) unit vector that points up, None for
    nuScenes' y; `points`: (P, 3 or more) metres.
    """
    canvas = np.full((side, side, 3), DARK, np.uint8)
    view = _View(side, extent, np.array([0.0, 1.0] if forward is None else forward))
    _rings(canvas, view)
    if points is not None:
        rising = points[np.argsort(points[:, 2], kind='stable')]
        columns, rows = view.pixels(rising[:, :2].astype(np.float64)).T
        inside = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
        low, high = POINT_HEIGHTS
        share = np.clip((rising[inside, 2] - low) / (high - low), 0, 1)[:, None]
        canvas[rows[inside], columns[inside]] = np.array(GREY) * (1 - share) + np.array(PALE) * share
    for layer_index, layer in enumerate(layers):
        for line, label in layer.detections.ground_lines():
            colour = PALE if layer_index else WHITE if label < 0 else class_colour(label)
            cv2.polylines(canvas, [view.pixels(line)], False, colour, 1 if layer_index else 2, cv2.LINE_AA)
        for box_index in range(len(layer.detections) - 1, -1, -1):
            _draw_from_above(canvas, view, layer, box_index, is_pale=layer_index > 0)
    _legend(canvas, layers, classes)
    return canvas


@dataclasses.dataclass(frozen=True)
class _View:
    side: int
    extent: float
    forward: np.ndarray

    @property
    def scale(self) -> float:
        return self.side / (2 * self.extent)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        up = points @ self.forward
        right = points @ np.array([self.forward[1], -self.forward[0]])
        places = np.round(np.stack([right, -up], -1) * self.scale + self.side / 2)
        return np.clip(np.nan_to_num(places), -FARTHEST_PIXEL, FARTHEST_PIXEL).astype(int)


def ring_radii(extent: float) -> range:
    spacing = RING_SPACING_M
    while extent * 1.4 > spacing * MOST_RINGS:
        spacing *= 10
    return range(spacing, int(extent * 1.4), spacing)


def _rings(canvas: np.ndarray, view: _View) -> None:
    middle, scale = view.side // 2, view.scale
    centre = middle, middle
    for metres in ring_radii(view.extent):
        radius = round(metres * scale)
        cv2.circle(canvas, centre, radius, GREY, 1, cv2.LINE_AA)
        if metres < view.extent:
            write(canvas, f'{metres:g} m', (middle + 4, middle - radius + 14), 0.42, (170, 165, 160))
    low, high = np.round(middle + np.outer([-1, 1], [1.0, 2.3]) * scale).astype(int).tolist()
    cv2.rectangle(canvas, low, high, (200, 200, 200), 1, cv2.LINE_AA)
    tip = middle, round(middle - 6 * scale)
    cv2.arrowedLine(canvas, centre, tip, (200, 200, 200), 1, cv2.LINE_AA, tipLength=0.3)


def _draw_from_above(canvas: np.ndarray, view: _View, layer: BoxLayer, index: int, *, is_pale: bool) -> None:
    box = layer.detections.boxes[index]
    corners = box_corners(box[None])[0, :4, :2]
    outline, centre = view.pixels(corners), view.pixels(box[:2])
    colour, width = (PALE, 1) if is_pale else (layer.colour(index), 3)
    cv2.polylines(canvas, [outline], True, colour, width, cv2.LINE_AA)
    cv2.line(canvas, centre.tolist(), view.pixels(corners[:2].mean(0)).tolist(), colour, width, cv2.LINE_AA)
    if np.hypot(*box[7:9]) >= MIN_SPEED:
        ends, line = (centre.tolist(), view.pixels(box[:2] + box[7:9]).tolist()), max(width - 1, 1)
        cv2.arrowedLine(canvas, *ends, colour, line, cv2.LINE_AA, tipLength=0.25)
    if layer.is_marked(index):
        radius = int(np.hypot(*(outline - centre).T).max()) + 6
        cv2.circle(canvas, centre.tolist(), radius, WHITE, 2, cv2.LINE_AA)


def _legend(canvas: np.ndarray, layers: Sequence[BoxLayer], classes: Sequence[str]) -> None:
    for line, layer in enumerate(layers):
        text = layer.caption() + (', pale lines' if line else '')
        write(canvas, text, (8, 18 + 18 * line), 0.5)
    if any(layer.marked is not None and layer.marked.any() for layer in layers):
        write(canvas, 'white ring: no equal on the other side', (8, 18 + 18 * len(layers)), 0.45)
    colours = {
        (int(layer.detections.labels[index]), layer.name(index, classes)): layer.colour(index)
        for layer in layers
        for index in range(len(layer.detections))
    }
    row_count = (canvas.shape[0] - 8) // 17 - len(layers) - 2
    for row, ((_, name), colour) in enumerate(sorted(colours.items(), reverse=True)[:row_count]):
        bottom = canvas.shape[0] - 8 - 17 * row
        cv2.rectangle(canvas, (8, bottom - 10), (20, bottom), colour, cv2.FILLED)
        write(canvas, name, (26, bottom), 0.42)
