"""Prepared pictures as inputs of graphs.

Glossary: B batch, K proposals, H, W network input in pixels.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.preprocess.pictures import PreparedImage

WINDOWS = (1, 2, 4, 8)
"""Divisors of the sides of an image: windows of these sizes, which overlap by half, stand for proposals
that are missing."""


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch of pictures of one size, name -> float32 array.

    They are `input` (B, 3, H, W), normalised, `img_shape` (B, 2) height and width before padding, `border`
    (B, 2) rows of padding above and columns left of the image if there are any, and with `rescale`
    `scale_factor` (B, 4) `w h w h`, input / original, which boxes are divided by. Sizes are in pixels.
    """
    batch = dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
    )
    if any(any(image.border) for image in images):
        batch['border'] = np.asarray([image.border for image in images], np.float32)
    if rescale:
        batch['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
    return batch


def mask_feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return `input` and `img_shape` as `feeds` does, and `ori_shape` (2,) int64 height and width in pixels.

    Masks have that size, the original one, whatever `rescale` says. ShapeError: the images have several.
    """
    return dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
        ori_shape=one_size((tuple(image.ori_shape) for image in images), 'masks'),
    )


def one_size(sizes: Iterable[tuple[int, int]], results: str) -> np.ndarray:
    """Return the one size (2,) int64, height and width, that all images of a batch have, at least one image.

    ShapeError: there are several sizes; `results` is the word for what has that size, in the message.
    """
    different = sorted(set(sizes))
    if len(different) > 1:
        raise ShapeError(
            f'ori_shape: the images of a batch have the original sizes {different}; {results} of one batch '
            f'have one size: run them one by one (samples_per_gpu=1)'
        )
    return np.asarray(different[0], np.int64)


def batches(images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return lists of indices of images that one run may take, one list of each original size.

    The network inputs of all images are of one size.
    """
    return grouped([tuple(image.ori_shape) for image in images])


def grouped(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return groups of the indices of equal sizes, in the order of the first index of each group."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return list(groups.values())


def proposals_of(image: PreparedImage) -> np.ndarray:
    """Return the proposals (K, 4) float32 of an image, or windows of several sizes all over its content.

    They are xyxy in pixels of the network input.
    """
    if image.proposals is not None:
        return image.proposals[:, :4].astype(np.float32)
    windows = []
    for divisor in WINDOWS:
        steps = np.arange(2 * divisor - 1) / (2 * divisor)
        low = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        windows.append(np.concatenate([low, low + 1 / divisor], 1))
    height, width = image.img_shape
    return (np.concatenate(windows) * [width, height, width, height]).astype(np.float32)


def pasted_size(image: PreparedImage, rescale: bool) -> tuple[int, int]:
    """Return height and width, pixels, of the image that masks are pasted into.

    With `rescale` it is the original, or, along a side on which that is larger, the content of the input
    divided by its ratio: if the content or its ratio is not fed, boxes reach beyond the original, and mmdet
    raises if one lies outside of the image that it is pasted into. Without `rescale` it is the original
    multiplied by the ratio, rounded.
    """
    if rescale:
        content = np.round(np.divide(image.img_shape, image.scale_factor[1::-1]))
        return tuple(int(side) for side in np.maximum(image.ori_shape, content))
    return tuple(int(side) for side in np.round(np.multiply(image.ori_shape, image.scale_factor[1::-1])))


def feeds_with_sizes(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of `feeds`, and `ori_shape` (B, 2) int64, the `pasted_size` of every image.

    `scale_factor` is among them only with `rescale`.
    """
    sizes = [pasted_size(image, rescale) for image in images]
    return dict(feeds(images, rescale), ori_shape=np.asarray(sizes, np.int64))
