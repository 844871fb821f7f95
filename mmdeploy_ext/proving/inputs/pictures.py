"""Pictures of a proof: files of the user, generated ones, and views: mirrored, cut, dark, bright, zoomed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


DARK, LIT, WINDOW = 0.05, 0.5, 0.3
"""Factors of a dark picture: of every value; of its window, a small copy; and of the window's sides."""
PARTS = ((1, 1), (7 / 8, 3 / 4), (3 / 4, 7 / 8))
"""Shares of height and width of the part of a picture at index 0, 1 and 2 of a batch."""
NEXT_PARTS = 15 / 16
"""Factor of these shares for each further three indices."""
BRIGHT = 0.4
"""Factor of every value's distance to white in a bright picture."""
ROOM = 1.25
"""A picture larger than its place in the input by this factor is reduced."""


def other_view(image_bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((image_bgr[:, ::-1] * 0.8).astype(image_bgr.dtype))


def cut(image_bgr: np.ndarray, place: int = 1) -> np.ndarray:
    """Return the upper left part of a picture, see `PARTS`; `place` is its index in a batch."""
    height, width = part_of(image_bgr.shape[:2], place)
    return np.ascontiguousarray(image_bgr[:height, :width])


def part_of(size: tuple[int, int], place: int) -> tuple[int, int]:
    """Return the size (h, w) of a part of a picture of `size`, for the index `place` in a batch."""
    parts = PARTS[place % len(PARTS)]
    factor = NEXT_PARTS ** (place // len(PARTS))
    return tuple(max(int(side * part * factor), 1) for side, part in zip(size, parts, strict=True))


def dark(image_bgr: np.ndarray) -> np.ndarray:
    """Return a nearly black picture with a small visible copy in the middle."""
    height, width = (int(side * WINDOW) for side in image_bgr.shape[:2])
    y, x = ((side - part) // 2 for side, part in zip(image_bgr.shape[:2], (height, width), strict=True))
    picture = (image_bgr * DARK).astype(image_bgr.dtype)
    small = _reduced(image_bgr, (max(width, 1), max(height, 1)))
    picture[y : y + len(small), x : x + small.shape[1]] = (small * LIT).astype(image_bgr.dtype)
    return picture


def bright(image_bgr: np.ndarray) -> np.ndarray:
    return (255 - (255.0 - image_bgr) * BRIGHT).astype(image_bgr.dtype)


def zoomed(image_bgr: np.ndarray, box_xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the box (4,) of a picture, pixels, stretched to (h, w)."""
    height, width = image_bgr.shape[:2]
    x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, (width - 1, height - 1)).astype(int)
    x2, y2 = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (width, height)).astype(int)
    view = cv2.resize(image_bgr[y1:y2, x1:x2], size[::-1], interpolation=cv2.INTER_LINEAR)
    return view.reshape(*size, image_bgr.shape[2])


def filling(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture with an input's ratio of sides (H, W): no padding."""
    height, width = image_bgr.shape[:2]
    parts = size[1] * height / (size[0] * width)
    if parts >= 1:  # side by side
        axis, scale = 1, size[0] / height
    else:  # one above the other
        axis, scale, parts = 0, size[1] / width, 1 / parts
    if scale * ROOM < 1:
        smaller = max(round(width * scale * ROOM), 1), max(round(height * scale * ROOM), 1)
        image_bgr = _reduced(image_bgr, smaller)
    views = image_bgr, other_view(image_bgr)
    composed = np.concatenate([views[index % 2] for index in range(int(np.ceil(parts)))], axis)
    length = max(round(image_bgr.shape[axis] * parts), 1)
    return np.ascontiguousarray(composed[:, :length] if axis else composed[:length])


def _reduced(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # means over areas are there for up to four bands
    interpolation = cv2.INTER_AREA if picture.shape[2] <= 4 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=interpolation).reshape(*size[::-1], picture.shape[2])


def with_bands(image_bgr: np.ndarray, bands: int) -> np.ndarray:
    """Return (h, w, bands) uint8: further bands are the three of a picture, moved to the right."""
    planes = [np.roll(image_bgr[..., band % 3], band // 3, axis=1) for band in range(bands)]
    return np.ascontiguousarray(np.stack(planes, axis=-1))


def titled(title: str, change: str) -> str:
    """Return the title of a changed picture: 'toy.jpg (mirrored, cut)'."""
    return f'{title[:-1]}, {change})' if title.endswith(')') else f'{title} ({change})'


PORTRAIT_HEIGHT, LARGEST_HEIGHT = 512, 1024
"""Height of the generated portrait, pixels, and its upper bound."""
LANDSCAPE_WIDTH, LANDSCAPE_HEIGHT = 307, 151
"""Size of the generated landscape, pixels; the height is an upper bound."""
ORIENTATION, TURNED = 0x0112, 6
"""EXIF's orientation tag; its value for a picture turned to the left."""
PORTRAIT_NAME, LANDSCAPE_NAME = 'generated portrait.jpg', 'generated landscape.png'


def sample_files(
    paths: Sequence[str | Path],
    picture: np.ndarray,
    edges: tuple[int, int] | None,
    folder: Path,
    banded: str = '',
) -> list[Path]:
    """Return the user's files, a portrait as JPEG, and a landscape as grey PNG of 16 bits.

    - `paths`: files of the user; without any `picture` (h, w, 3) uint8 BGR is written.
    - `edges`: resized height of a portrait and width of a landscape, pixels, or None.
    - `folder`: for the generated files.
    - `banded`: suffix of files with the bands of `picture` (h, w, bands), if the user has no such file.
    """
    files = [Path(file) for file in paths]
    tall, wide = edges or (None, None)
    if banded:
        suffix = files[0].suffix if files else banded
        sizes = {'portrait': portrait_size(tall), 'landscape': landscape_size(wide)}
        made = {name: with_bands(_noise(*size), picture.shape[2]) for name, size in sizes.items()}
        made |= {} if files else dict(sample=picture)
        return files + [
            write_array(folder / f'generated {name}{suffix}', array.astype(picture.dtype))
            for name, array in made.items()
        ]
    if not files:
        files.append(folder / 'sample.bmp')
        cv2.imwrite(str(files[0]), picture)
    return [*files, write_portrait(folder, tall), write_landscape(folder, wide)]


def portrait_size(edge: int | None) -> tuple[int, int]:
    """Return (h, w) of a narrow portrait with a resized width halfway between two pixels.

    `edge`: resized height, a multiple of 4 and not of 1024.
    """
    # w * edge / h ends in one half if w / h is odd / period, with period twice the power of two in edge
    period = 2 * (edge & -edge) if edge else 0
    if not 0 < period <= LARGEST_HEIGHT:
        return PORTRAIT_HEIGHT, PORTRAIT_HEIGHT // 2 - 3
    odd = max(period // 2 - 1, 1)
    if odd * edge * 2 // period % 4 == 3 and odd > 2:  # halfway above an odd number, which `round` rounds up
        odd -= 2
    height = max(PORTRAIT_HEIGHT, period)
    return height, height // period * odd


def landscape_size(edge: int | None) -> tuple[int, int]:
    """Return (h, w) of a wide landscape with a resized height that mmcv and `ceil` round differently."""
    heights = range(LANDSCAPE_HEIGHT, LANDSCAPE_HEIGHT // 2, -1)
    fractions = {height: height * (edge or 0) / LANDSCAPE_WIDTH % 1 for height in heights}
    fitting = (height for height, fraction in fractions.items() if 0.05 < fraction < 0.45)
    return next(fitting, LANDSCAPE_HEIGHT), LANDSCAPE_WIDTH


def write_portrait(folder: Path, edge: int | None) -> Path:
    """Write a portrait as a JPEG stored sideways, as telephones do."""
    from PIL import Image

    height, width = portrait_size(edge)
    stored = np.rot90(_noise(height, width))
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    path = folder / PORTRAIT_NAME
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    return path


def write_landscape(folder: Path, edge: int | None) -> Path:
    path = folder / LANDSCAPE_NAME
    cv2.imwrite(str(path), _noise(*landscape_size(edge))[..., 0].astype(np.uint16) * 257)
    return path


def write_array(path: Path, array: np.ndarray) -> Path:
    """Write (h, w, bands) as `.npy` or a picture."""
    if path.suffix.lower() == '.npy':
        np.save(path, array)
    else:
        cv2.imwrite(str(path), array)
    return path


def _noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    slope = np.linspace(0, 160, width)[:, None] * np.array([1.0, 0.5, 0.2])
    return (slope[None] + rng.integers(0, 96, (height, width, 3))).astype(np.uint8)
