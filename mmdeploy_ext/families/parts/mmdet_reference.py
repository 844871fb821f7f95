"""What mmdet's detectors are called with, unpatched, and what their results are.

Proofs compare the graphs with it.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.parts.image_feeds import pasted_size, proposals_of
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, Instances


def batch_of(model: nn.Module, images: Sequence[PreparedImage]) -> torch.Tensor:
    """Return prepared images of one size (B, 3, H, W), where the model is."""
    batch = torch.from_numpy(np.stack([image.tensor for image in images]))
    return batch.to(next(model.parameters()).device)


def metas_of(images: Sequence[PreparedImage]) -> list[dict[str, Any]]:
    """Return what mmdet's test pipelines collect of every image of a batch."""
    return [
        dict(
            filename='',
            ori_filename='',
            flip=False,
            flip_direction=None,
        )
        | dict(image.collected)
        | dict(
            img_shape=(*image.img_shape, 3),
            scale_factor=image.scale_factor,
            ori_shape=(*image.ori_shape, 3),
            pad_shape=(*image.tensor.shape[1:], 3),
            batch_input_shape=image.tensor.shape[1:],
            border=_four_sides(image),
        )
        for image in images
    ]


def _four_sides(image: PreparedImage) -> np.ndarray:
    """Return where the content of an image begins and ends, as mmdet has it: top, bottom, left, right."""
    (top, left), (height, width) = image.border, image.img_shape
    return np.asarray([top, top + height, left, left + width], np.float32)


def tested(
    model: nn.Module,
    images: Sequence[PreparedImage],
    metas: Sequence[dict[str, Any]],
    rescale: bool,
    **data: Any,
) -> list[Any]:
    """Return the results of a detector's own test path, per image: `forward` with `return_loss=False`.

    `data` are what else its test path takes of every image, such as proposals.
    """
    batch = batch_of(model, images).contiguous()  # see `roi_align`
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
        return model(
            return_loss=False,
            rescale=rescale,
            img=[batch],
            img_metas=[list(metas)],
            **{name: [value] for name, value in data.items()},
        )


Given = tuple['list[torch.Tensor]', 'list[torch.Tensor]']
"""Maps of all levels that regions are pooled from, and proposals (K, 4) of every image."""


def detections(
    model: nn.Module, images: Sequence[PreparedImage], rescale: bool, given: Given | None = None
) -> list[Detections]:
    """Return the results of the detector's own test path, or of that of its head of regions alone.

    Boxes are in pixels of the originals with `rescale`. `given` is what regions are pooled from, and
    proposals, in place of the model's own.
    """
    metas = metas_of_images(images, rescale)
    if given is not None:
        with torch.no_grad():
            results = model.roi_head.simple_test(*given, metas, rescale=rescale)
    elif getattr(model, 'rpn_head', None) is None:
        like = next(model.parameters())
        proposals = [torch.from_numpy(proposals_of(image)).to(like) for image in images]
        results = tested(model, images, metas, rescale, proposals=proposals)
    else:
        results = tested(model, images, metas, rescale)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is not None and roi_head.with_mask:
        sizes = [pasted_size(image, rescale) for image in images]
        return [instances_of_classes(*one, size) for one, size in zip(results, sizes, strict=True)]
    return [boxes_of_classes([one] if roi_head is None else one) for one in results]


def metas_of_images(images: Sequence[PreparedImage], rescale: bool) -> list[dict[str, Any]]:
    """Return what mmdet wants to know about every image; see `detections`."""
    sizes = [pasted_size(image, True) if rescale else image.ori_shape for image in images]
    every = zip(metas_of(images), sizes, strict=True)
    return [meta | dict(ori_shape=(*size, 3), flip=False) for meta, size in every]


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return the boxes of an image of all classes, (n, 5) each, in descending score order."""
    rows, labels, order = _in_order(result)
    return Detections(rows[order, :4], rows[order, 4], labels[order])


def instances_of_classes(
    boxes: Sequence[np.ndarray], masks: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
) -> Instances:
    """Return the instances of an image of all classes, masks of `size`, in descending score order.

    With heads that judge masks, `masks` is a pair: masks and their scores, of all classes.
    """
    masks, scores = masks if isinstance(masks, tuple) else (masks, None)
    rows, labels, order = _in_order(boxes)
    every = [mask for one in masks for mask in one]
    whole = np.stack([every[row] for row in order]) if every else np.zeros((0, *size), bool)
    mask_scores = None
    if scores is not None:
        mask_scores = np.asarray([score for of_class in scores for score in of_class], np.float32)[order]
    return Instances(whole, rows[order, 4], labels[order], rows[order, :4], mask_scores)


def _in_order(result: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes with scores (n, 5) and labels (n,) of all classes, and their order by score."""
    rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, 5) for one in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(one) for one in result])
    return rows, labels, np.argsort(-rows[:, 4], kind='stable')
