"""Files of pictures on which preprocessing is compared: those of the user, and generated ones beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

PORTRAIT_HEIGHT, LARGEST_HEIGHT = 512, 1024
"""Height of the generated portrait, pixels, and its upper bound if half a pixel needs a larger one."""
LANDSCAPE_WIDTH, LANDSCAPE_HEIGHT = 307, 151
"""Size of the generated landscape, pixels; the height is an upper bound."""
ORIENTATION, TURNED = 0x0112, 6
"""EXIF's tag of the orientation; its value for a picture that is stored turned to the left."""
PORTRAIT_NAME, LANDSCAPE_NAME = 'generated portrait.jpg', 'generated landscape.png'


def sample_files(
    paths: Sequence[str | Path], picture: np.ndarray, edges: tuple[int, int] | None, folder: Path
) -> list[Path]:
    """Return files of pictures: those of the user, and two generated ones of other sizes and formats.

    The generated ones are a portrait as JPEG, stored lying on its side with EXIF's orientation, and a
    landscape as grey PNG of 16 bits, which a reader of colour pictures gives as 8 bits and three channels.

    Args:
        paths: files of the user; if there are none `picture` is written to a file in their place.
        picture: (h, w, 3) uint8 BGR.
        edges: height that a narrow portrait is resized to, and width of a wide landscape, pixels, if the
            ratio of sides is kept; None if they are unknown.
        folder: for the generated files; it has to be there.
    """
    files = [Path(file) for file in paths]
    if not files:
        files.append(folder / 'sample.bmp')
        cv2.imwrite(str(files[0]), picture)
    tall, wide = edges or (None, None)
    return [*files, write_portrait(folder, tall), write_landscape(folder, wide)]


def portrait_size(edge: int | None) -> tuple[int, int]:
    """Return (h, w) of a narrow portrait whose resized width lies halfway between two whole pixels.

    mmcv rounds it up; Python's `round` takes the even number, the lower one here, and `int` the lower one.
    That holds for an edge that is a multiple of 4 and not of 1024; others give a portrait that may tell less.

    Args:
        edge: pixels that the height is resized to; None: pictures are not resized to an edge.
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
    """Return (h, w) of a wide landscape whose resized height mmcv rounds down, and `ceil` up.

    If no height gives one, it is `LANDSCAPE_HEIGHT`.

    Args:
        edge: pixels that the width is resized to; None: pictures are not resized to an edge.
    """
    heights = range(LANDSCAPE_HEIGHT, LANDSCAPE_HEIGHT // 2, -1)
    fractions = {height: height * (edge or 0) / LANDSCAPE_WIDTH % 1 for height in heights}
    fitting = (height for height, fraction in fractions.items() if 0.05 < fraction < 0.45)
    return next(fitting, LANDSCAPE_HEIGHT), LANDSCAPE_WIDTH


def write_portrait(folder: Path, edge: int | None) -> Path:
    """Write a portrait as JPEG whose rows are stored as columns, as telephones do; return its path.

    `edge` are the pixels that its height is resized to, or None.
    """
    from PIL import Image

    height, width = portrait_size(edge)
    stored = np.rot90(_noise(height, width))
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    path = folder / PORTRAIT_NAME
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    return path


def write_landscape(folder: Path, edge: int | None) -> Path:
    """Write a landscape as grey PNG of 16 bits; return its path.

    `edge` are the pixels that its width is resized to, or None.
    """
    path = folder / LANDSCAPE_NAME
    cv2.imwrite(str(path), _noise(*landscape_size(edge))[..., 0].astype(np.uint16) * 257)
    return path


def _noise(height: int, width: int) -> np.ndarray:
    """Return (h, w, 3) uint8 noise over a slope of each channel; it is the same at every call."""
    rng = np.random.default_rng(height * width)
    slope = np.linspace(0, 160, width)[:, None] * np.array([1.0, 0.5, 0.2])
    return (slope[None] + rng.integers(0, 96, (height, width, 3))).astype(np.uint8)
