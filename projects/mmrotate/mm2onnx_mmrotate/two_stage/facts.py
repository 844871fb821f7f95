"""Facts of two-stage detectors of rotated boxes."""

import dataclasses

from mm2onnx_mmrotate.angles import Version
from mm2onnx_mmrotate.deltas import Delta
from mm2onnx_mmrotate.two_stage.coders import GlidingVertex
from mmdeploy_ext.families.heads import NmsConfig
from mmdeploy_ext.spec.facts import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedTwoStageFacts(NmsConfig):
    """The settings of `test_cfg.rcnn`, and the coder of the last head."""

    coder: Delta | GlidingVertex
    num_classes: Count
    angle_version: Version
