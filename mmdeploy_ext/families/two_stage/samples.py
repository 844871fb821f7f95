"""Prepared pictures as inputs of two-stage graphs, and what pasting needs beside them."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.dense.samples import feeds
from mmdeploy_ext.families.solo.samples import grouped, one_size
from mmdeploy_ext.preprocess.pictures import PreparedImage

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


def feeds_with_proposals(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and its `proposals`."""
    return dict(feeds(images, rescale), proposals=stacked([proposals_of(image) for image in images]))


def stacked(every: Sequence[np.ndarray]) -> np.ndarray:
    """Return boxes (K, 4) of each image as (B, K, 4): rows that an image does not have are zero."""
    most = max(1, *map(len, every))
    return np.stack([np.pad(one, ((0, most - len(one)), (0, 0))) for one in every])


def pasted_size(image: PreparedImage, rescale: bool) -> tuple[int, int]:
    """Return height and width that masks are pasted into: the original, or the content of the input.

    Where the content or its ratio is not fed, boxes reach beyond the original; mmdet raises where one lies
    outside of what it pastes into.
    """
    if rescale:
        content = np.round(np.divide(image.img_shape, image.scale_factor[1::-1]))
        return tuple(int(side) for side in np.maximum(image.ori_shape, content))
    return tuple(int(side) for side in np.round(np.multiply(image.ori_shape, image.scale_factor[1::-1])))


def batches_of_one_size(images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return which images one run may take together: maps of one batch have one size."""
    return grouped([pasted_size(image, True) for image in images])


def feeds_with_size(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and `ori_shape` (2,) int64; maps are of the original size in any case.

    ShapeError: the images have several.
    """
    return dict(feeds(images, True), ori_shape=one_size([pasted_size(one, True) for one in images], 'maps'))


def feeds_with_sizes(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and `ori_shape` (B, 2) int64: see `pasted_size`."""
    sizes = [pasted_size(image, rescale) for image in images]
    return dict(feeds(images, rescale), ori_shape=np.asarray(sizes, np.int64))
