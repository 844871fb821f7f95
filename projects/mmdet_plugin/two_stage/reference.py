"""Two-stage detectors as mmdet runs them, unpatched: what a proof compares the graphs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.runtime.detections import Detections

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
            ori_shape=(*image.ori_shape, 3),
            pad_shape=(*image.tensor.shape[1:], 3),
        )
        for image in images
    ]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([image.tensor for image in images])).contiguous()  # see `roi_align`
        batch = batch.to(next(model.parameters()).device)
        results = model.simple_test(batch, metas, rescale=rescale)
    return [boxes_of_classes(result) for result in results]


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return the boxes of an image of all classes, (n, 5) each, in descending score order."""
    rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, 5) for one in result])
    labels = np.repeat(np.arange(len(result)), [len(one) for one in result])
    order = np.argsort(-rows[:, 4], kind='stable')
    return Detections(rows[order, :4], rows[order, 4], labels[order].astype(np.int64))
