"""Two-stage detectors as mmdet runs them, unpatched: what a proof compares the graphs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.runtime.detections import BoxedInstances, Detections
from projects.mmdet_plugin.two_stage.samples import pasted_size, proposals_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.inputs.pictures import PreparedImage


def tensors(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a form without post-processing; there is none yet."""
    raise NotImplementedError(form)


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of mmdet's `simple_test`."""
    metas = [
        dict(
            img_shape=(*image.img_shape, 3),
            scale_factor=image.scale_factor,
            ori_shape=(*(pasted_size(image, True) if rescale else image.ori_shape), 3),
            pad_shape=(*image.tensor.shape[1:], 3),
            flip=False,
        )
        for image in images
    ]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([image.tensor for image in images])).contiguous()  # see `roi_align`
        batch = batch.to(next(model.parameters()).device)
        given = {}
        if getattr(model, 'rpn_head', None) is None:
            given['proposals'] = [torch.from_numpy(proposals_of(image)).to(batch) for image in images]
        results = model.simple_test(batch, metas, rescale=rescale, **given)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        return [boxes_of_classes([one]) for one in results]
    if not roi_head.with_mask:
        return [boxes_of_classes(one) for one in results]
    return [
        instances_of_classes(*one, pasted_size(image, rescale))
        for one, image in zip(results, images, strict=True)
    ]


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return the boxes of an image of all classes, (n, 5) each, in descending score order."""
    rows, labels, order = _in_order(result)
    return Detections(rows[order, :4], rows[order, 4], labels[order])


def instances_of_classes(
    boxes: Sequence[np.ndarray], masks: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
) -> BoxedInstances:
    """Return the instances of an image of all classes, masks of `size`, in descending score order."""
    rows, labels, order = _in_order(boxes)
    every = [mask for one in masks for mask in one]
    whole = np.stack([every[row] for row in order]) if every else np.zeros((0, *size), bool)
    return BoxedInstances(whole, rows[order, 4], labels[order], rows[order, :4])


def _in_order(result: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes with scores (n, 5) and labels (n,) of all classes, and their order by score."""
    rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, 5) for one in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(one) for one in result])
    return rows, labels, np.argsort(-rows[:, 4], kind='stable')
