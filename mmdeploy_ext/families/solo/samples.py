"""Prepared pictures as inputs of SOLO graphs."""

from collections.abc import Iterable, Sequence

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.preprocess.pictures import PreparedImage


def batches(images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return which images one run may take together: masks of one batch have one size."""
    return grouped([tuple(image.ori_shape) for image in images])


def grouped(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the indices of those that are equal, in the order of the first of each."""
    return [[index for index, one in enumerate(sizes) if one == size] for size in dict.fromkeys(sizes)]


def one_size(sizes: Iterable[tuple[int, int]], what: str) -> np.ndarray:
    """Return the one size (2,) int64 of `what` a batch gives; ShapeError: there are several."""
    several = sorted(set(sizes))
    if len(several) > 1:
        raise ShapeError(
            f'ori_shape: the images of a batch have the original sizes {several}; {what} of one batch have '
            f'one size: run them one by one (samples_per_gpu=1)'
        )
    return np.asarray(several[0], np.int64)


def whole(image: PreparedImage) -> tuple[int, int]:
    """Return the size that soft masks have: up to a multiple of 8; see `ImageFamily.whole`."""
    return tuple(-(-side // 8) * 8 for side in image.tensor.shape[1:])


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch; masks are of the original size whatever `rescale` says."""
    return dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
        ori_shape=one_size((tuple(image.ori_shape) for image in images), 'masks'),
    )
