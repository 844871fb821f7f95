"""Pictures of 3D boxes in cameras' images and from above.

N cameras, n boxes, P points; LiDAR frame in metres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.runtime.bird_eye import DARK, WHITE, BoxLayer, bird_eye
from mmdeploy_ext.runtime.draw import FONT, overlaps, text_colour, write
from mmdeploy_ext.runtime.geometry import box_corners
from mmdeploy_ext.spec.preparation import CAMERAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.draw import Box, Colour

NEAR = 0.5
"""Metres from a camera to the cutting plane."""
BOTTOM = [(0, 1), (1, 2), (2, 3), (3, 0)]
TOP = [(4, 5), (5, 6), (6, 7), (7, 4)]
PILLARS = [(0, 4), (1, 5), (2, 6), (3, 7)]
FRONT_CROSS = [(0, 5), (1, 4)]
"""Diagonals of the front face, which show the heading."""
BOX_LINES = np.array(BOTTOM + TOP + PILLARS + FRONT_CROSS)
"""Pairs of corners, see `box_corners`."""
LAYOUT = ((2, 0, 1), (4, 3, 5))
"""Mosaic of nuScenes' six cameras: front left, front, front right; the same behind."""
CAMERA_TITLES = ('front', 'front right', 'front left', 'back', 'back left', 'back right')
GAP = 4
SWEEP_SIDE, MARGIN_M, SMALLEST_EXTENT_M = 560, 4.0, 12.0


def project_segments(starts: np.ndarray, ends: np.ndarray, lidar2img: np.ndarray) -> np.ndarray:
    """Project segments (n, 3) to (m, 4) float64 x1 y1 x2 y2 pixels, cut at the near plane.

    `lidar2img` (4, 4) goes to pixels times depth.
    """
    starts, ends = (
        np.concatenate([points, np.ones((len(points), 1))], 1) @ lidar2img.T for points in (starts, ends)
    )
    visible = np.maximum(starts[:, 2], ends[:, 2]) > NEAR
    starts, ends = starts[visible], ends[visible]
    starts, ends = _cut(starts, ends), _cut(ends, starts)
    return np.concatenate([starts[:, :2] / starts[:, 2:3], ends[:, :2] / ends[:, 2:3]], axis=1)


def _cut(points: np.ndarray, other_ends: np.ndarray) -> np.ndarray:
    missing = NEAR - points[:, 2]
    length = np.where(missing > 0, other_ends[:, 2] - points[:, 2], 1.0)
    return points + (other_ends - points) * np.clip(missing / length, 0, 1)[:, None]


def draw_camera(
    image_bgr: np.ndarray, lidar2img: np.ndarray, layer: BoxLayer, classes: Sequence[str]
) -> np.ndarray:
    """Copy one camera's image with boxes, far ones first; `lidar2img` (4, 4) goes to pixels times depth."""
    canvas = np.ascontiguousarray(image_bgr).copy()
    corners = box_corners(layer.detections.boxes)
    depth = (corners.mean(axis=1) @ lidar2img[2, :3]) + lidar2img[2, 3]
    placed: list[Box] = []
    labels = []
    width = 2 if canvas.shape[1] >= 300 else 1
    for index in np.argsort(-depth, kind='stable').tolist():
        lines = project_segments(*corners[index][BOX_LINES.T], lidar2img)
        if not len(lines):
            continue
        x, y = lines[:, 0::2], lines[:, 1::2]
        if x.max() < 0 or y.max() < 0 or x.min() > canvas.shape[1] or y.min() > canvas.shape[0]:
            continue  # the whole box is beyond one edge of the image
        lines, colour = np.clip(np.nan_to_num(lines), -1e4, 1e4), layer.colour(index)
        outline = (WHITE, width + 4) if layer.is_marked(index) else ((0, 0, 0), width + 2)
        for shade, thickness in (outline, (colour, width)):
            for line in np.round(lines).astype(int).tolist():
                cv2.line(canvas, line[:2], line[2:], shade, thickness, cv2.LINE_AA)
        text = f'{layer.name(index, classes)} {float(layer.detections.scores[index]):.2f}'
        labels.append((text, lines, colour))
    for text, lines, colour in reversed(labels):
        _label(canvas, text, lines, colour, placed)
    return canvas


def _label(canvas: np.ndarray, text: str, lines: np.ndarray, colour: Colour, placed: list[Box]) -> None:
    x, y = lines[:, 0::2], lines[:, 1::2]
    if y.max() - y.min() < 14:
        return
    (width, height), baseline = cv2.getTextSize(text, FONT, 0.4, 1)
    left = int(np.clip(x.min(), 0, max(canvas.shape[1] - width - 4, 0)))
    top = int(np.clip(y.min() - height - baseline - 2, 0, max(canvas.shape[0] - height - baseline, 0)))
    place = left, top, left + width + 4, top + height + baseline
    if overlaps(place, placed):
        return
    placed.append(place)
    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    write(canvas, text, (left + 2, top + height + 1), 0.4, text_colour(colour))


def camera_mosaic(
    images_bgr: Sequence[np.ndarray],
    lidar2img: np.ndarray,
    layer: BoxLayer,
    classes: Sequence[str],
    cell_width: int = 440,
) -> np.ndarray:
    """Draw boxes into N images in nuScenes' order, laid out as seen from the car; `lidar2img` (N, 4, 4)."""
    cells = []
    for camera, (image, matrix) in enumerate(zip(images_bgr, lidar2img, strict=True)):
        ratio = cell_width / image.shape[1]
        method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
        size = cell_width, max(round(image.shape[0] * ratio), 1)
        scaled = np.diag([size[0] / image.shape[1], size[1] / image.shape[0], 1.0, 1.0]) @ matrix
        cell = draw_camera(cv2.resize(image, size, interpolation=method), scaled, layer, classes)
        title = CAMERA_TITLES[camera] if len(images_bgr) == len(CAMERA_TITLES) else f'camera {camera}'
        cv2.rectangle(cell, (0, size[1] - 19), (12 + 8 * len(title), size[1]), DARK, cv2.FILLED)
        write(cell, title, (5, size[1] - 6), 0.45)
        cells.append(cell)
    if len(cells) == len(CAMERA_TITLES):
        return _grid([[cells[index] for index in row] for row in LAYOUT])
    return _grid([cells[first : first + 3] for first in range(0, len(cells), 3)])


def in_drawn_order(
    images_bgr: Sequence[np.ndarray], lidar2img: np.ndarray, cameras: Sequence[str]
) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Images and `lidar2img` in nuScenes' order if `cameras` are its six in another order."""
    if sorted(cameras) != sorted(CAMERAS):
        return images_bgr, lidar2img
    order = [list(cameras).index(name) for name in CAMERAS]
    return [images_bgr[index] for index in order], lidar2img[order]


def _grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    height, width = (max(cell.shape[axis] for row in rows for cell in row) for axis in (0, 1))
    columns = max(map(len, rows))
    shape = len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3
    canvas = np.full(shape, DARK, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def forward_direction(lidar2img: np.ndarray) -> np.ndarray:
    """Axis (2,) of the LiDAR frame nearest to the first camera's view; `lidar2img` (N, 4, 4)."""
    direction = np.asarray(lidar2img, np.float64)[0, 2, :2]
    axis = int(np.argmax(np.abs(direction)))
    forward = np.zeros(2)
    forward[axis] = np.sign(direction[axis]) or 1.0
    return forward


def compare_picture(
    images_bgr: Sequence[np.ndarray],
    lidar2img: np.ndarray,
    layers: Sequence[BoxLayer],
    classes: Sequence[str],
    title: str = '',
    points: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a mosaic per layer and the view from above, (h, w, 3) uint8 BGR with even sides."""
    cell_width = 440 if len(layers) > 1 else 600
    parts = []
    for layer in layers:
        mosaic = camera_mosaic(images_bgr, lidar2img, layer, classes, cell_width)
        parts.append(_titled(f'{title}   {layer.caption()}' if title else layer.caption(), mosaic))
    mosaics = np.vstack(parts)
    side = max(mosaics.shape[0], 440)
    above = bird_eye(layers, classes, side, forward=forward_direction(lidar2img), points=points)
    height, width = side, mosaics.shape[1] + GAP + side
    canvas = np.full((height + height % 2, width + width % 2, 3), DARK, np.uint8)
    canvas[: mosaics.shape[0], : mosaics.shape[1]] = mosaics
    canvas[:side, mosaics.shape[1] + GAP : mosaics.shape[1] + GAP + side] = above
    return canvas


def sweep_picture(
    title: str, points: np.ndarray, layers: Sequence[BoxLayer], classes: Sequence[str]
) -> np.ndarray:
    """Draw points (P, 3 or more, LiDAR frame) from above once per layer, on one scale."""
    distances = np.concatenate([np.abs(layer.detections.boxes[:, :2]).ravel() for layer in layers])
    extent = float(distances[np.isfinite(distances)].max(initial=SMALLEST_EXTENT_M)) + MARGIN_M
    views = [bird_eye([layer], classes, SWEEP_SIDE, extent, points=points) for layer in layers]
    return _titled(title, _grid([views]), 0.55)


def _titled(text: str, picture: np.ndarray, font_scale: float = 0.6) -> np.ndarray:
    strip = np.full((28, picture.shape[1], 3), DARK, np.uint8)
    write(strip, text, (8, 20), font_scale)
    return np.vstack([strip, picture])
