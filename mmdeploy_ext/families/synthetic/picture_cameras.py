"""Generated cameras of pictures, drawn by random numbers of the picture."""

import numpy as np

from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

MIDDLE, SKEW = 0.1, 0.02
"""Largest offset of a camera's middle, over half of the sides, and skew, over the focal length."""
FOCAL, STRETCH = (0.7, 1.3), (0.95, 1.05)
"""Ranges of focal length over width, and of the ratio of both, of monocular detectors."""
TRANSLATION_M = (0.3, 0.1, 0.02)
"""Largest translation, metres times focal length for x and y."""
UPRIGHT = (0, -1, 0), (0, 0, -1), (1, 0, 0)
"""Camera axes (x right, y down, z ahead) as rows in a LiDAR frame (x ahead, y left, z up)."""
LIDAR_FOCAL, LIDAR_STRETCH = (0.6, 1.1), (0.9, 1.1)
"""Ranges of focal length over width, and of the ratio of both."""
TURN_RAD = (-0.3, 0.06, 0.06)
"""Largest turns about y, then x, then z; drawn numbers of either sign multiply them."""
MOVED_M = 6.0, 3.0, 0.5
"""Largest translation along the LiDAR's x, y and z, metres."""


def numbers_of_pixels(image: PreparedImage) -> np.random.Generator:
    """Return a generator seeded by size and some pixels of a prepared picture."""
    pixels = np.frombuffer(np.ascontiguousarray(image.tensor[:, ::7, ::5]).tobytes(), np.uint8)
    return np.random.default_rng([int(pixels.astype(np.int64).sum()), *image.tensor.shape[1:]])


def drawn_intrinsics(
    numbers: np.random.Generator,
    height: float,
    width: float,
    focal_range: tuple[float, float],
    stretch_range: tuple[float, float],
) -> np.ndarray:
    """Return drawn intrinsics (4, 4) float64 of a picture in pixels.

    `focal_range` is over the width along x, `stretch_range` the ratio of y to x.
    """
    focal = width * numbers.uniform(*focal_range)
    moved = 1 + numbers.uniform(-MIDDLE, MIDDLE, 2)
    intrinsics = np.eye(4)
    intrinsics[0, :3] = focal, focal * numbers.uniform(-SKEW, SKEW), width / 2 * moved[0]
    intrinsics[1, 1:3] = focal * numbers.uniform(*stretch_range), height / 2 * moved[1]
    return intrinsics


def monocular_camera(image: PreparedImage) -> np.ndarray:
    """Return a camera (4, 4) float32 for a network input by size and pixels."""
    numbers = numbers_of_pixels(image)
    cam2img = drawn_intrinsics(numbers, *image.tensor.shape[1:], FOCAL, STRETCH)
    focal = cam2img[0, 0]
    cam2img[:3, 3] = numbers.uniform(-1, 1, 3) * TRANSLATION_M * (focal, focal, 1)
    return cam2img.astype(np.float32)


def lidar_camera(image: PreparedImage) -> np.ndarray:
    """Return a camera (4, 4) float32 of the picture on disk, by prepared pixels and scale."""
    from scipy.spatial.transform import Rotation  # takes half a second to import

    numbers = numbers_of_pixels(image)
    height, width = np.divide(image.tensor.shape[1:], image.scale_factor[1::-1])
    intrinsics, pose = drawn_intrinsics(numbers, height, width, LIDAR_FOCAL, LIDAR_STRETCH), np.eye(4)
    pose[:3, :3] = Rotation.from_euler('yxz', numbers.uniform(-1, 1, 3) * TURN_RAD).as_matrix() @ UPRIGHT
    pose[:3, 3] = -pose[:3, :3] @ (numbers.uniform(-1, 1, 3) * MOVED_M)
    return (intrinsics @ pose).astype(np.float32)
