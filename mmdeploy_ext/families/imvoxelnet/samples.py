"""Inputs of pictures: their cameras, those that come with them or generated ones.

Only proofs have pictures without a camera. Each gets one of its own, which is turned and moved against the
grid of voxels, so that voxels are behind it, beyond all edges of the picture, and in it.
"""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.parts import image_graphs
from mmdeploy_ext.families.parts.generated_cameras import drawn_intrinsics, numbers_of_pixels
from mmdeploy_ext.preprocess.cam2img import check_projection, original
from mmdeploy_ext.preprocess.pictures import PreparedImage

UPRIGHT = (0, -1, 0), (0, 0, -1), (1, 0, 0)
"""Axes of a camera (x right, y down, z ahead) as rows in the frame of a LiDAR (x ahead, y left, z up)."""
FOCAL, STRETCH = (0.6, 1.1), (0.9, 1.1)
"""Range of generated focal lengths, over the width of the picture, and of the ratio of both."""
TURN_RAD = (-0.3, 0.06, 0.06)
"""Largest turns of a generated camera about y, then x, then z; drawn numbers of either sign multiply them."""
MOVED_M = 6.0, 3.0, 0.5
"""Largest translation of a generated camera along x, y and z of the LiDAR, metres."""


def original_camera(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of a prepared picture: LiDAR to pixels, times depth, on disk.

    A picture without a camera gets that of `generated_camera`.
    """
    if image.cam2img is None:
        return generated_camera(image)
    return original(image.cam2img, image.to_input).astype(np.float32)


def generated_camera(image: PreparedImage) -> np.ndarray:
    """Return a camera (4, 4) float32 of a picture on disk, which its prepared pixels and its scale decide."""
    from scipy.spatial.transform import Rotation  # takes half a second to import

    numbers = numbers_of_pixels(image)
    height, width = np.divide(image.tensor.shape[1:], image.scale_factor[1::-1])
    intrinsics, pose = drawn_intrinsics(numbers, height, width, FOCAL, STRETCH), np.eye(4)
    pose[:3, :3] = Rotation.from_euler('yxz', numbers.uniform(-1, 1, 3) * TURN_RAD).as_matrix() @ UPRIGHT
    pose[:3, 3] = -pose[:3, :3] @ (numbers.uniform(-1, 1, 3) * MOVED_M)
    return (intrinsics @ pose).astype(np.float32)


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch of pictures of one size by name, and what the runtime needs of them.

    They are `input` (B, 3, H, W), `lidar2img` (B, 4, 4), the cameras of `original_camera`, `scale_factor`
    (B, 4) `w h w h`, input / picture on disk, all float32, and to draw `drawn_camera` (B, 4, 4) float64, that
    of the picture on disk with `rescale`, otherwise that of the network input.

    ShapeError: a camera is not finite, or its last row is not 0 0 0 1.
    """
    cameras = np.stack([original_camera(image) for image in images])
    for camera in cameras:
        check_projection(camera)
    batch = image_graphs.feeds(images, rescale=True)
    ratios = batch['scale_factor']
    drawn = cameras.astype(np.float64)
    if not rescale:
        drawn[:, :2] *= ratios[:, :2, None]
    return dict(input=batch['input'], scale_factor=ratios, drawn_camera=drawn, lidar2img=cameras)
