"""Pictures of detections, (h, w, 3) uint8 BGR. n detections. Needs OpenCV and numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.base.errors import ImageError, printable
from mmdeploy_ext.base.files import atomic_path
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.detections import Detections, bounding_box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mmdeploy_ext.runtime.detections import Instances, Scored

FONT, NEAREST = cv2.FONT_HERSHEY_SIMPLEX, cv2.INTER_NEAREST
Box, Colour = tuple[int, int, int, int], tuple[int, int, int]
PALETTE_BGR: tuple[Colour, ...] = (
    (56, 56, 255),
    (255, 144, 30),
    (60, 180, 20),
    (0, 200, 255),
    (230, 60, 200),
    (210, 200, 0),
    (30, 110, 245),
    (150, 60, 120),
    (90, 230, 150),
    (180, 130, 250),
    (40, 80, 140),
    (255, 220, 130),
)
"""Colours of the first classes; later ones walk the hue circle by the golden angle."""
BRIGHTNESSES = (255, 215, 170)
TINT = 0.45
LEGIBLE_SIDE = 900
FAR = 30000
"""Pixels; farther points are drawn there, to fit OpenCV's integers."""


@dataclasses.dataclass(frozen=True)
class Style:
    thickness: int
    font_scale: float
    font_thickness: int
    pad: int

    @classmethod
    def for_image(cls, height: int, width: int) -> Style:
        side = max(height, width)
        line = round(side / 320)
        return cls(max(1, line), max(0.38, side / 1400), max(1, round(side / 900)), max(2, line))


def class_colour(label: int) -> Colour:
    if 0 <= label < len(PALETTE_BGR):
        return PALETTE_BGR[label]
    hue = int(label * 111.246) % 180
    brightness = BRIGHTNESSES[label % len(BRIGHTNESSES)]
    pixel = cv2.cvtColor(np.array([[[hue, 200, brightness]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return tuple(pixel.tolist())


def track_colour(track_id: int) -> Colour:
    return class_colour(len(PALETTE_BGR) + track_id) if track_id >= 0 else (150, 150, 150)


def text_colour(background_bgr: Colour) -> Colour:
    blue, green, red = background_bgr
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)


def class_name(label: int, classes: Sequence[str]) -> str:
    return printable(classes[label]) if 0 <= label < len(classes) else f'class {label}'


def visible(picture: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) uint8 of a picture (h, w, bands): its first three bands, or the first one thrice."""
    if picture.dtype == np.uint8 and picture.shape[2] == 3:
        return picture
    shown = picture[..., :3] if picture.shape[2] >= 3 else np.repeat(picture[..., :1], 3, axis=2)
    if picture.dtype != np.uint8:
        shown = cv2.normalize(shown.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.ascontiguousarray(shown)


def draw_results(
    family: str, image_bgr: np.ndarray, results: Scored, classes: Sequence[str], score_thr: float = 0.3
) -> np.ndarray:
    draw = draw_instances if hasattr(results, 'masks') else draw_detections
    return getattr(runtime_of(family), 'draw', draw)(image_bgr, results, classes, score_thr)


def draw_detections(
    image_bgr: np.ndarray,
    detections: Detections,
    classes: Sequence[str],
    score_thr: float = 0.3,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Copy the image with boxes, or the results' `outlines`, class names and scores.

    `marked` (n,) bool adds a white frame and an exclamation mark.
    """
    canvas = np.ascontiguousarray(image_bgr).copy()
    style = Style.for_image(*canvas.shape[:2])
    labels = list(_labels(canvas.shape, style, detections, classes, score_thr, marked))
    width, outlines = style.thickness, detections.outlines
    for label in reversed(labels):
        lines = [(label.colour, width)]
        if label.is_marked:
            lines = [((0, 0, 0), 2 * width + 5), ((255, 255, 255), 2 * width + 3), *lines]
        elif width > 1:
            lines = [((0, 0, 0), width + 2), *lines]
        for shade, thickness in lines:
            if outlines is None:
                cv2.rectangle(canvas, label.box[:2], label.box[2:], shade, thickness)
            else:
                corners = pixel_points(outlines[label.index])
                cv2.polylines(canvas, [corners], isClosed=True, color=shade, thickness=thickness)
    for label in reversed(labels):
        _draw_label(canvas, label, style)
    return canvas


def draw_instances(
    image_bgr: np.ndarray,
    instances: Instances,
    classes: Sequence[str],
    score_thr: float = 0.3,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Copy the image with tinted masks, class names and scores; better ones lie on top.

    Masks are resized by `NEAREST`. `marked` (n,) bool adds a white outline and an exclamation mark.
    """
    canvas = np.ascontiguousarray(image_bgr).copy()
    height, width = canvas.shape[:2]
    style = Style.for_image(height, width)
    marked = np.zeros(len(instances), bool) if marked is None else marked
    order = np.argsort(instances.scores, kind='stable')
    order = order[instances.scores[order] >= score_thr]
    boxes = np.zeros((len(instances), 4), np.float32)
    for index in order:
        mask = cv2.resize(instances.masks[index].astype(np.uint8), (width, height), interpolation=NEAREST)
        boxes[index] = bounding_box(mask)
        colour = class_colour(int(instances.labels[index]))
        inside = mask > 0
        canvas[inside] = (canvas[inside] * (1 - TINT) + np.array(colour) * TINT).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if marked[index]:
            cv2.drawContours(canvas, outlines, -1, (255, 255, 255), 2 * style.thickness + 3)
        cv2.drawContours(canvas, outlines, -1, colour, style.thickness)
    detections = Detections(boxes, instances.scores, instances.labels)
    labels = list(_labels(canvas.shape, style, detections, classes, score_thr, marked, instances.scored))
    for label in reversed(labels):
        _draw_label(canvas, label, style)
    return canvas


@dataclasses.dataclass(frozen=True)
class _Label:
    index: int
    box: Box
    text: str
    place: Box
    colour: Colour
    is_marked: bool


def _labels(
    shape: tuple[int, ...],
    style: Style,
    detections: Detections,
    classes: Sequence[str],
    score_thr: float,
    marked: np.ndarray | None,
    has_scores: bool = True,
) -> Iterator[_Label]:
    placed: list[Box] = []
    order = np.argsort(-detections.scores, kind='stable')
    for index in order[detections.scores[order] >= score_thr]:
        class_index, is_marked = int(detections.labels[index]), marked is not None and bool(marked[index])
        text = class_name(class_index, classes)
        if is_marked:
            text = f'! {text}'
        if has_scores:
            text += f' {float(detections.scores[index]):.2f}'
        box = pixel_box(detections.bboxes_xyxy[index], shape)
        placed.append(place_label(text, box, shape, style, placed))
        yield _Label(int(index), box, text, placed[-1], class_colour(class_index), is_marked)


def enlarged(image_bgr: np.ndarray, results: Scored, side: int = LEGIBLE_SIDE) -> tuple[np.ndarray, Scored]:
    """Enlarge a small image and its boxes by a whole factor up to `side` pixels; masks stay."""
    factor = side // max(image_bgr.shape[:2])
    if factor < 2:
        return image_bgr, results
    image_bgr = cv2.resize(image_bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return image_bgr, results.scaled(np.full(4, 1 / factor))


def pixel_box(bbox_xyxy: np.ndarray, shape: tuple[int, ...]) -> Box:
    """Round a box (4,) to pixels inside an image; NaN becomes 0."""
    upper = np.array([shape[1] - 1, shape[0] - 1] * 2)
    return tuple(np.clip(np.nan_to_num(np.round(bbox_xyxy)), 0, upper).astype(int).tolist())


def pixel_points(points: np.ndarray) -> np.ndarray:
    """Round points (n, 2) to int32 pixels up to `FAR`; NaN and infinity become 0."""
    return np.rint(np.clip(np.nan_to_num(points, posinf=0, neginf=0), -FAR, FAR)).astype(np.int32)


def place_label(text: str, box: Box, shape: tuple[int, ...], style: Style, placed: Sequence[Box]) -> Box:
    text = printable(text)  # half a character ends OpenCV's text in a crash
    (text_w, text_h), baseline = cv2.getTextSize(text, FONT, style.font_scale, style.font_thickness)
    width, height = text_w + 2 * style.pad, text_h + baseline + 2 * style.pad
    right, low = max(shape[1] - width, 0), shape[0] - height
    tops = [y for y in (box[1] - height, box[1], box[3], box[3] - height) if 0 <= y <= low]
    corners = [(min(max(x, 0), right), y) for y in tops for x in (box[0], box[2] - width)]
    corners = corners or [(min(max(box[0], 0), right), min(max(box[1], 0), max(low, 0)))]
    places = [(x, y, x + width, y + height) for x, y in corners]
    return next((place for place in places if not overlaps(place, placed)), places[0])


def overlaps(box: Box, boxes: Sequence[Box]) -> bool:
    x1, y1, x2, y2 = box
    return any(x1 < right and left < x2 and y1 < bottom and top < y2 for left, top, right, bottom in boxes)


def _draw_label(canvas: np.ndarray, label: _Label, style: Style) -> None:
    place, colour = label.place, label.colour
    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    _, baseline = cv2.getTextSize(label.text, FONT, style.font_scale, style.font_thickness)
    corner = place[0] + style.pad, place[3] - baseline - style.pad + 1
    write(canvas, label.text, corner, style.font_scale, text_colour(colour), style.font_thickness)


def write(
    canvas: np.ndarray,
    text: str,
    corner: tuple[int, int],
    scale: float,
    colour: Colour = (255, 255, 255),
    thickness: int = 1,
) -> None:
    """Write a line of ASCII text in place; `corner` is the baseline's start in pixels."""
    letters = printable(text).encode('ascii', 'replace').decode()
    cv2.putText(canvas, letters, corner, FONT, scale, colour, thickness, cv2.LINE_AA)


def encode_png(image_bgr: np.ndarray) -> bytes:
    return _encode('.png', image_bgr)


def encode_jpeg(image_bgr: np.ndarray) -> bytes:
    return _encode('.jpg', image_bgr, cv2.IMWRITE_JPEG_QUALITY, 88)


def _encode(suffix: str, image_bgr: np.ndarray, *options: int) -> bytes:
    success, data = cv2.imencode(suffix, image_bgr, options)
    if not success:
        raise ImageError(f'an image of shape {image_bgr.shape} could not be encoded as {suffix[1:]}')
    return data.tobytes()


def write_picture(path: Path, image_bgr: np.ndarray) -> None:
    """Write a picture atomically, as PNG for .png or no suffix, else JPEG."""
    encode = encode_png if path.suffix.lower() in ('', '.png') else encode_jpeg
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode(image_bgr))
