"""Cameras of pictures, generated for pictures without one."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.common import image_graphs
from mmdeploy_ext.families.synthetic.picture_cameras import monocular_camera
from mmdeploy_ext.runtime.preprocess.cam2img import check_camera, original, unmoved
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


def camera_of(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of a prepared picture, in pixels of the network input."""
    if image.cam2img is None:
        return monocular_camera(image)
    check_camera(original(image.cam2img, image.to_input), image.ori_shape)
    return image.cam2img.astype(np.float32)


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of pictures of one size, and arrays for the runtime.

    `image_graphs.feeds` without `border`, with `rescale` `scale_factor`; `cam2img` (B, 4, 4) float32, pixels
    of the network input; `unmoved_cam2img` (B, 4, 4) float64, without padding or warp, to draw with.
    """
    cameras = [camera_of(image) for image in images]
    unmoved_cameras = [
        unmoved(camera, image.to_input, image.scale_factor)
        for image, camera in zip(images, cameras, strict=True)
    ]
    batch = image_graphs.feeds(images, rescale)
    batch.pop('border', None)
    return batch | dict(cam2img=np.stack(cameras), unmoved_cam2img=np.stack(unmoved_cameras))
