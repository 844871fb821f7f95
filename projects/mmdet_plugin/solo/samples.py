"""Prepared pictures as inputs of SOLO graphs."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.inputs.pictures import PreparedImage


def batches(images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return which images one run may take together: masks of one batch have one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.ori_shape), []).append(index)
    return list(groups.values())


def whole(image: PreparedImage) -> tuple[int, int]:
    """Return the size that soft masks have: up to a multiple of 8; see `ImageFamily.whole`."""
    return tuple(-(-side // 8) * 8 for side in image.tensor.shape[1:])


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch; masks are of the original size whatever `rescale` says."""
    sizes = {tuple(image.ori_shape) for image in images}
    if len(sizes) > 1:
        raise ShapeError(
            f'ori_shape: the images of a batch have the original sizes {sorted(sizes)}; masks of one '
            f'batch have one size: run them one by one (samples_per_gpu=1)'
        )
    return dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
        ori_shape=np.asarray(sizes.pop(), np.int64),
    )
