"""YOLACT as mmdet runs it, unpatched: what a proof compares the graph with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.parts.mmdet_reference import batch_of, instances_of_classes, metas_of
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import BoxedInstances


def instances(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[BoxedInstances]:
    """Return the instances of mmdet's `simple_test`, masks of the original size whatever `rescale` says."""
    metas = [
        meta | dict(scale_factor=np.asarray(meta['scale_factor'] if rescale else np.ones(4), np.float32))
        for meta in metas_of(images)
    ]
    with torch.no_grad():
        results = model.simple_test(batch_of(model, images), metas, rescale=True)
    sizes = [tuple(image.ori_shape) for image in images]
    return [instances_of_classes(*one, size) for one, size in zip(results, sizes, strict=True)]
