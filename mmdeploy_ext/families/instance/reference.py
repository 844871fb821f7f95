"""RTMDet-Ins, CondInst and BoxInst as the models here run them; a recording compares with mmdet 3."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.families.common.mmdet_reference import given_to, instances_of_classes, metas_of, tested
from mmdeploy_ext.families.instance.graphs import InstanceNetwork
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


class InstanceReference(ImageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
        metas = metas_of(images)
        for meta in metas:
            meta['scale_factor'] = np.asarray(meta['scale_factor'] if rescale else np.ones(4), np.float32)
        return [
            instances_of_classes(boxes, masks, tuple(image.ori_shape))
            for (boxes, masks), image in zip(
                tested(self.model, images, metas, rescale=True), images, strict=True
            )
        ]

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        network = InstanceNetwork(self.model)
        given = given_to(self.model, tensors, network.names)
        if not given:
            return {}
        features, *maps = given.values()
        return {'maps': (network.grouped(maps), features)}

    def borders(self) -> dict[str, Any]:
        network = InstanceNetwork(self.model)

        def named(calls: list[Any]) -> dict[str, Any]:
            outputs, features = calls[0]
            return dict(zip(network.names, network.flat(outputs, features), strict=True))

        return {'maps': named}
