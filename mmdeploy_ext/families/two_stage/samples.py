"""Prepared pictures as inputs of two-stage graphs, and what pasting needs beside them."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.parts.image_feeds import feeds, grouped, one_size, pasted_size, proposals_of
from mmdeploy_ext.preprocess.pictures import PreparedImage


def feeds_with_proposals(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and its `proposals`."""
    return dict(feeds(images, rescale), proposals=stacked([proposals_of(image) for image in images]))


def stacked(every: Sequence[np.ndarray]) -> np.ndarray:
    """Return boxes (K, 4) of each image as (B, K, 4): rows that an image does not have are zero."""
    most = max(1, *map(len, every))
    return np.stack([np.pad(one, ((0, most - len(one)), (0, 0))) for one in every])


def batches_of_one_size(images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return which images one run may take together: maps of one batch have one size."""
    return grouped([pasted_size(image, True) for image in images])


def feeds_with_size(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and `ori_shape` (2,) int64; maps are of the original size in any case.

    ShapeError: the images have several.
    """
    return dict(feeds(images, True), ori_shape=one_size([pasted_size(one, True) for one in images], 'maps'))
