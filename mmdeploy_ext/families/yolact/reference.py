"""YOLACT as mmdet runs it, unpatched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.families.common.mmdet_reference import given_to, instances_of_classes, metas_of, tested
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.yolact.graphs import HEAD_OUTPUTS, YolactNetwork
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


class YolactReference(ImageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
        metas = metas_of(images)
        for meta in metas:
            scale_factor = meta['scale_factor'] if rescale else np.ones(4)
            meta['scale_factor'] = np.asarray(scale_factor, np.float32)
        return [
            instances_of_classes(boxes, masks, tuple(image.ori_shape))
            for (boxes, masks), image in zip(
                tested(self.model, images, metas, rescale=True), images, strict=True
            )
        ]

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        given = given_to(self.model, tensors, YolactNetwork(self.model).names)
        if not given:
            return {}
        prototypes, *maps = given.values()
        levels = len(maps) // len(HEAD_OUTPUTS)
        outputs = tuple(maps[index * levels : (index + 1) * levels] for index in range(len(HEAD_OUTPUTS)))
        return {
            'extract_feat': [None],  # of which nothing is read
            'bbox_head.forward': outputs,
            'mask_head.protonet.forward': prototypes,
        }

    def borders(self) -> dict[str, Any]:
        prototypes, *names = YolactNetwork(self.model).names
        return {
            'bbox_head.forward': lambda calls: dict(
                zip(names, (level for levels in calls[0] for level in levels), strict=True)
            ),
            'mask_head.protonet.forward': lambda calls: {prototypes: calls[0]},
        }
