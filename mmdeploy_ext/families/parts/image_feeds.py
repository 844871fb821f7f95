"""Prepared pictures as inputs of graphs."""

from collections.abc import Iterable, Sequence

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
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


def mask_feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch; masks are of the original size whatever `rescale` says."""
    return dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
        ori_shape=one_size((tuple(image.ori_shape) for image in images), 'masks'),
    )


WINDOWS = (1, 2, 4, 8)
"""Windows of the sides of an image over these stand for proposals where none are given."""


def windows(image: PreparedImage) -> np.ndarray:
    """Return windows of several sizes (K, 4) float32 that lie all over the content of an image."""
    found = []
    for parts in WINDOWS:
        low = np.stack(np.meshgrid(*[np.arange(2 * parts - 1) / (2 * parts)] * 2), -1).reshape(-1, 2)
        found.append(np.concatenate([low, low + 1 / parts], 1))
    height, width = image.img_shape
    return (np.concatenate(found) * [width, height, width, height]).astype(np.float32)


def proposals_of(image: PreparedImage) -> np.ndarray:
    """Return the proposals (K, 4) of an image, or windows of it where it has none."""
    return windows(image) if image.proposals is None else image.proposals[:, :4].astype(np.float32)


def pasted_size(image: PreparedImage, rescale: bool) -> tuple[int, int]:
    """Return height and width that masks are pasted into: the original, or the content of the input.

    Where the content or its ratio is not fed, boxes reach beyond the original; mmdet raises where one lies
    outside of what it pastes into.
    """
    if rescale:
        content = np.round(np.divide(image.img_shape, image.scale_factor[1::-1]))
        return tuple(int(side) for side in np.maximum(image.ori_shape, content))
    return tuple(int(side) for side in np.round(np.multiply(image.ori_shape, image.scale_factor[1::-1])))


def feeds_with_sizes(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and `ori_shape` (B, 2) int64: see `pasted_size`."""
    sizes = [pasted_size(image, rescale) for image in images]
    return dict(feeds(images, rescale), ori_shape=np.asarray(sizes, np.int64))
