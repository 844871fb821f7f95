"""Inputs of pictures with their own or generated cameras."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.common import image_graphs
from mmdeploy_ext.families.synthetic.picture_cameras import lidar_camera
from mmdeploy_ext.runtime.preprocess.cam2img import check_projection, original
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


def original_camera(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of the picture on disk, or `lidar_camera`."""
    if image.cam2img is None:
        return lidar_camera(image)
    camera = original(image.cam2img, image.to_input).astype(np.float32)
    check_projection(camera, image.ori_shape)
    return camera


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of pictures of one size, and arrays for the runtime.

    `input` (B, 3, H, W), `lidar2img` (B, 4, 4), `scale_factor` (B, 4) `w h w h`, input / picture on disk, all
    float32; `drawn_camera` (B, 4, 4) float64, of the picture on disk with `rescale`, otherwise of the network
    input.
    """
    cameras = np.stack([original_camera(image) for image in images])
    batch = image_graphs.feeds(images, rescale=True)
    ratios = batch['scale_factor']
    drawn = cameras.astype(np.float64)
    if not rescale:
        drawn[:, :2] *= ratios[:, :2, None]
    return dict(input=batch['input'], scale_factor=ratios, drawn_camera=drawn, lidar2img=cameras)
