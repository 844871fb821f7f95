"""Generated cameras of pictures: random numbers that a picture decides, and intrinsics drawn from them."""

import numpy as np

from mmdeploy_ext.preprocess.pictures import PreparedImage

MIDDLE, SKEW = 0.1, 0.02
"""Largest distance of the middle of a generated camera from that of the picture, over half of its sides, and
largest skew, over the focal length."""
FOCAL, STRETCH = (0.7, 1.3), (0.95, 1.05)
"""Range of focal lengths, over the width of the input, and of the ratio of both, of monocular detectors."""
TRANSLATION_M = (0.3, 0.1, 0.02)
"""Largest translation of such a camera, metres times focal length for x and y."""
UPRIGHT = (0, -1, 0), (0, 0, -1), (1, 0, 0)
"""Axes of a camera (x right, y down, z ahead) as rows in the frame of a LiDAR (x ahead, y left, z up)."""
LIDAR_FOCAL, LIDAR_STRETCH = (0.6, 1.1), (0.9, 1.1)
"""Range of generated focal lengths, over the width of the picture, and of the ratio of both."""
TURN_RAD = (-0.3, 0.06, 0.06)
"""Largest turns of a generated camera about y, then x, then z; drawn numbers of either sign multiply them."""
MOVED_M = 6.0, 3.0, 0.5
"""Largest translation of a generated camera along x, y and z of the LiDAR, metres."""


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


def monocular_camera(image: PreparedImage) -> np.ndarray:
    """Return a camera (4, 4) float32 for a network input; size and pixels decide it."""
    numbers = numbers_of_pixels(image)
    cam2img = drawn_intrinsics(numbers, *image.tensor.shape[1:], FOCAL, STRETCH)
    focal = cam2img[0, 0]
    cam2img[:3, 3] = numbers.uniform(-1, 1, 3) * TRANSLATION_M * (focal, focal, 1)
    return cam2img.astype(np.float32)


def lidar_camera(image: PreparedImage) -> np.ndarray:
    """Return a camera (4, 4) float32 of a picture on disk, which its prepared pixels and its scale decide."""
    from scipy.spatial.transform import Rotation  # takes half a second to import

    numbers = numbers_of_pixels(image)
    height, width = np.divide(image.tensor.shape[1:], image.scale_factor[1::-1])
    intrinsics, pose = drawn_intrinsics(numbers, height, width, LIDAR_FOCAL, LIDAR_STRETCH), np.eye(4)
    pose[:3, :3] = Rotation.from_euler('yxz', numbers.uniform(-1, 1, 3) * TURN_RAD).as_matrix() @ UPRIGHT
    pose[:3, 3] = -pose[:3, :3] @ (numbers.uniform(-1, 1, 3) * MOVED_M)
    return (intrinsics @ pose).astype(np.float32)
