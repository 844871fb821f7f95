"""YOLACT as mmdet runs it, unpatched: what a proof compares the graph with."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from mmdeploy_ext.families.parts.mmdet_reference import instances_of_classes, metas_of, tested
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Instances


def instances(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
    """Return the detector's own results, masks of the original size whatever `rescale` says."""
    metas = [
        meta | dict(scale_factor=np.asarray(meta['scale_factor'] if rescale else np.ones(4), np.float32))
        for meta in metas_of(images)
    ]
    results = tested(model, images, metas, True)
    sizes = [tuple(image.ori_shape) for image in images]
    return [instances_of_classes(*one, size) for one, size in zip(results, sizes, strict=True)]
