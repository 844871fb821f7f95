"""Generated cameras of pictures: random numbers that a picture decides, and intrinsics drawn from them."""

import numpy as np

from mmdeploy_ext.preprocess.pictures import PreparedImage

MIDDLE, SKEW = 0.1, 0.02
"""Largest distance of the middle of a generated camera from that of the picture, over half of its sides, and
largest skew, over the focal length."""


def numbers_of_pixels(image: PreparedImage) -> np.random.Generator:
    """Return a generator of random numbers, seeded by the size and some pixels of a prepared picture."""
    pixels = np.frombuffer(np.ascontiguousarray(image.tensor[:, ::7, ::5]).tobytes(), np.uint8)
    return np.random.default_rng([int(pixels.astype(np.int64).sum()), *image.tensor.shape[1:]])


def drawn_intrinsics(
    numbers: np.random.Generator,
    height: float,
    width: float,
    focal_range: tuple[float, float],
    stretch_range: tuple[float, float],
) -> np.ndarray:
    """Return the intrinsics (4, 4) float64 of a camera, drawn from `numbers`.

    Skew, of either sign, and middle are drawn, too, up to `SKEW` and `MIDDLE`.

    Args:
        numbers: generator of random numbers.
        height: height of the picture, pixels.
        width: width of the picture, pixels.
        focal_range: range of the focal length along x, over the width of the picture.
        stretch_range: range of the focal length along y, over that along x.
    """
    focal = width * numbers.uniform(*focal_range)
    moved = 1 + numbers.uniform(-MIDDLE, MIDDLE, 2)
    intrinsics = np.eye(4)
    intrinsics[0, :3] = focal, focal * numbers.uniform(-SKEW, SKEW), width / 2 * moved[0]
    intrinsics[1, 1:3] = focal * numbers.uniform(*stretch_range), height / 2 * moved[1]
    return intrinsics
