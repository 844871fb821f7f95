"""YOLACT as mmdet runs it, unpatched: what a proof compares the graph with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.inputs.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import BoxedInstances
from projects.mmdet_plugin.two_stage.reference import instances_of_classes


def tensors(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a form without post-processing; there is none."""
    raise NotImplementedError(form)


def instances(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[BoxedInstances]:
    """Return the instances of mmdet's `simple_test`, masks of the original size whatever `rescale` says."""
    metas = [
        dict(
            img_shape=(*image.img_shape, 3),
            ori_shape=(*image.ori_shape, 3),
            scale_factor=np.asarray(image.scale_factor if rescale else np.ones(4), np.float32),
        )
        for image in images
    ]
    batch = torch.from_numpy(np.stack([image.tensor for image in images]))
    with torch.no_grad():
        results = model.simple_test(batch.to(next(model.parameters()).device), metas, rescale=True)
    return [
        instances_of_classes(*one, tuple(image.ori_shape)) for one, image in zip(results, images, strict=True)
    ]
