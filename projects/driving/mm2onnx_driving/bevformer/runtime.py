"""BEVFormer as a stream: images, calibration and motion in, boxes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2onnx_driving.common.runtime.bev_frames import BevOnnx
from mm2onnx_driving.common.runtime.query_boxes import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.spec.metadata import Metadata

FORM = 'bevformer'


class BevFormerOnnx(BevOnnx):
    families, files = ('bevformer',), (FORM,)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


QUANTISED = FORM
OPENS = BevFormerOnnx
