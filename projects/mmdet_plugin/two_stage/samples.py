"""Prepared pictures as inputs of two-stage graphs, and what pasting needs beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from projects.mmdet_plugin.dense.samples import feeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.inputs.pictures import PreparedImage


def pasted_size(image: PreparedImage, rescale: bool) -> tuple[int, int]:
    """Return height and width that masks are pasted into: the original, or the content of the input."""
    if rescale:
        return tuple(image.ori_shape)
    return tuple(int(side) for side in np.round(np.multiply(image.ori_shape, image.scale_factor[1::-1])))


def feeds_with_sizes(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, and `ori_shape` (B, 2) int64: see `pasted_size`."""
    sizes = [pasted_size(image, rescale) for image in images]
    return dict(feeds(images, rescale), ori_shape=np.asarray(sizes, np.int64))
