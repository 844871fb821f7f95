"""CenterPoint from points to boxes: sparse backbone or pillars, and dense head, on ONNX Runtime.

    runtime = CenterPointOnnx('work_dirs/centerpoint')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('sweep.pcd.bin', runtime.width))

Decoding: `families/common/runtime/center_boxes.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts, decode
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.lidar import LidarOnnx
from mmdeploy_ext.spec.facts import optional
from mmdeploy_ext.spec.metadata import Metadata

NMS_TYPES = ('rotate', 'circle')
"""Supported values of `nms_type` of mmdet3d's `test_cfg`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterPointFacts(CenterBoxFacts):
    """The settings that turn the head's outputs into boxes; `points` is 'pillars' for such a backbone."""

    points: Literal['pillars'] | None = optional()


class CenterPointOnnx(LidarOnnx):
    family = 'centerpoint'
    decode = staticmethod(decode)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = CenterPointOnnx, 'head'
