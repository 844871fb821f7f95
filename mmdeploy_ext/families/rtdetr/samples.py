"""Prepared pictures as inputs of RT-DETR graphs."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.families.rtdetr.runtime import SIZES, target_sizes
from mmdeploy_ext.preprocess.pictures import PreparedImage


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch of pictures of one size; see `ImageFamily.feeds`.

    ShapeError: boxes in pixels of the original are asked for, of an image that was padded.
    """
    return {'images': np.stack([image.tensor for image in images]), SIZES: _sizes(images, rescale)}


def _sizes(images: Sequence[PreparedImage], rescale: bool) -> np.ndarray:
    """Return (B, 2) int64 width, height that relative boxes are multiplied with."""
    if not rescale:
        return target_sizes([image.tensor.shape[1:] for image in images])
    for image in images:
        if tuple(image.img_shape) != image.tensor.shape[1:]:
            raise ShapeError(
                f'images: got an image of {image.img_shape[0]}x{image.img_shape[1]} padded to '
                f'{image.tensor.shape[1]}x{image.tensor.shape[2]}; RT-DETR takes whole images: resize to the '
                f'size of the graph (Resize img_scale)'
            )
    return target_sizes([image.ori_shape for image in images])
