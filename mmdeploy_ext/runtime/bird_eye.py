"""Boxes of a frame seen from above: range rings, the ego, points, headings. Needs OpenCV and numpy only.

Glossary: n boxes; LiDAR frame in metres.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.runtime.draw import class_colour, class_name, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections3d import Detections3D

WHITE, PALE, DARK, GREY = (255, 255, 255), (225, 225, 225), (32, 30, 28), (110, 105, 100)
EXTENT = 61.2
"""Metres from the ego to the edge of the view from above."""
MIN_SPEED = 0.3
POINT_HEIGHTS = -2.0, 1.5
"""Metres in the LiDAR frame: points as low as the first are grey, as high as the second pale."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One list of boxes in a picture.

    Attributes:
        title: whose they are.
        detections: LiDAR frame; all of them are drawn.
        marked: (n,) bool; these are ringed in white. None marks nothing.
    """

    title: str
    detections: Detections3D
    marked: np.ndarray | None = None

    def is_marked(self, index: int) -> bool:
        """Return whether a box is marked."""
        return self.marked is not None and bool(self.marked[index])


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 8, 3) of boxes (n, 9), z at the bottom: four below, then four above.

    The first two of each four are the front, in the direction of the yaw; the first size lies along it.
    """
    boxes = np.asarray(boxes, np.float64)
    front, left = np.array([1, 1, -1, -1]) / 2, np.array([1, -1, -1, 1]) / 2
    along, across = boxes[:, 3:4] * front, boxes[:, 4:5] * left
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    flat = np.stack([cos * along - sin * across, sin * along + cos * across], -1) + boxes[:, None, :2]
    heights = np.stack([boxes[:, 2], boxes[:, 2] + boxes[:, 5]], -1)
    levels = [np.concatenate([flat, np.tile(height[:, None, None], (1, 4, 1))], -1) for height in heights.T]
    return np.concatenate(levels, axis=1)


def bird_eye(
    layers: Sequence[Layer],
    classes: Sequence[str],
    side: int = 640,
    extent: float = EXTENT,
    forward: np.ndarray | None = None,
    points: np.ndarray | None = None,
) -> np.ndarray:
    """Draw boxes from above: range rings, ego, heading, where moving ones are a second later.

    The first layer is drawn in class colours, a second one over it as thin pale lines: where both agree, the
    pale line lies in the middle of the coloured one.

    Args:
        layers: one or two lists of boxes.
        classes: names by label.
        side: of the picture, pixels.
        extent: metres from the ego to the edge.
        forward: (2,) direction in the LiDAR frame that points up; nuScenes' y where None.
        points: (P, 3 or more) of the sweep, metres, drawn below the boxes, higher ones brighter.

    Returns:
        (side, side, 3) uint8 BGR.
    """
    canvas = np.full((side, side, 3), DARK, np.uint8)
    view = _View(side, extent, np.array([0.0, 1.0]) if forward is None else np.asarray(forward, np.float64))
    _rings(canvas, view)
    if points is not None:
        _draw_points(canvas, view, points)
    for number, layer in enumerate(layers):
        for index in range(len(layer.detections) - 1, -1, -1):
            _draw_from_above(canvas, view, layer, index, number)
    _legend(canvas, layers, classes)
    return canvas


@dataclasses.dataclass(frozen=True)
class _View:
    """From metres to pixels, `forward` up."""

    side: int
    extent: float
    forward: np.ndarray

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return (n, 2) int pixels of (n, 2) metres."""
        up = points @ self.forward
        right = points @ np.array([self.forward[1], -self.forward[0]])
        scale = self.side / (2 * self.extent)
        return np.round(np.stack([right, -up], -1) * scale + self.side / 2).astype(int)


def _rings(canvas: np.ndarray, view: _View) -> None:
    centre, scale = (view.side // 2, view.side // 2), view.side / (2 * view.extent)
    for metres in range(20, int(view.extent * 1.4), 20):
        cv2.circle(canvas, centre, round(metres * scale), GREY, 1, cv2.LINE_AA)
        if metres < view.extent:
            write(
                canvas,
                f'{metres} m',
                (centre[0] + 4, centre[1] - round(metres * scale) + 14),
                0.42,
                (170, 165, 160),
            )
    half = np.array([1.0, 2.3]) * scale
    low, high = (tuple(np.round(np.array(centre) + sign * half).astype(int).tolist()) for sign in (-1, 1))
    cv2.rectangle(canvas, low, high, (200, 200, 200), 1, cv2.LINE_AA)
    tip = centre[0], round(centre[1] - 6 * scale)
    cv2.arrowedLine(canvas, centre, tip, (200, 200, 200), 1, cv2.LINE_AA, tipLength=0.3)


def _draw_points(canvas: np.ndarray, view: _View, points: np.ndarray) -> None:
    rising = points[np.argsort(points[:, 2], kind='stable')]
    columns, rows = view.pixels(rising[:, :2].astype(np.float64)).T
    inside = (columns >= 0) & (columns < view.side) & (rows >= 0) & (rows < view.side)
    low, high = POINT_HEIGHTS
    share = np.clip((rising[inside, 2] - low) / (high - low), 0, 1)[:, None]
    canvas[rows[inside], columns[inside]] = np.array(GREY) * (1 - share) + np.array(PALE) * share


def _draw_from_above(canvas: np.ndarray, view: _View, layer: Layer, index: int, number: int) -> None:
    box = layer.detections.boxes[index]
    corners = box_corners(box[None])[0, :4, :2]
    outline, centre = view.pixels(corners), view.pixels(box[None, :2])[0]
    nose = view.pixels(corners[:2].mean(axis=0, keepdims=True))[0]
    colour, width = (PALE, 1) if number else (class_colour(int(layer.detections.labels[index])), 3)
    cv2.polylines(canvas, [outline], True, colour, width, cv2.LINE_AA)
    cv2.line(canvas, tuple(centre.tolist()), tuple(nose.tolist()), colour, width, cv2.LINE_AA)
    if np.hypot(*box[7:9]) >= MIN_SPEED:
        later = view.pixels(box[None, :2] + box[None, 7:9])[0]
        cv2.arrowedLine(
            canvas,
            tuple(centre.tolist()),
            tuple(later.tolist()),
            colour,
            max(width - 1, 1),
            cv2.LINE_AA,
            tipLength=0.25,
        )
    if layer.is_marked(index):
        radius = int(np.hypot(*(outline - centre).T).max()) + 6
        cv2.circle(canvas, tuple(centre.tolist()), radius, WHITE, 2, cv2.LINE_AA)


def _legend(canvas: np.ndarray, layers: Sequence[Layer], classes: Sequence[str]) -> None:
    """Write whose boxes these are, how many, and the colours of the classes that are there."""
    for number, layer in enumerate(layers):
        count = len(layer.detections)
        text = f'{layer.title}: {count} box{"es" * (count != 1)}' + (', pale lines' if number else '')
        write(canvas, text, (8, 18 + 18 * number), 0.5)
    if any(layer.marked is not None and layer.marked.any() for layer in layers):
        write(canvas, 'white ring: no equal on the other side', (8, 18 + 18 * len(layers)), 0.45)
    labels = sorted({int(label) for layer in layers for label in layer.detections.labels})
    for row, label in enumerate(reversed(labels)):
        bottom = canvas.shape[0] - 8 - 17 * row
        cv2.rectangle(canvas, (8, bottom - 10), (20, bottom), class_colour(label), cv2.FILLED)
        write(canvas, class_name(label, classes), (26, bottom), 0.42)
