"""Prepared pictures as inputs of dense graphs."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.preprocess.pictures import PreparedImage


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch of pictures of one size; see `ImageFamily.feeds`."""
    found = dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
    )
    if any(any(image.border) for image in images):
        found['border'] = np.asarray([image.border for image in images], np.float32)
    if rescale:
        found['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
    return found
