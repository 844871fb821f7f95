"""LiDAR detectors with anchors from points to boxes: sparse backbone or pillars, and dense head.

    runtime = AnchorOnnx('work_dirs/pointpillars')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('000008.bin', runtime.width))

Decoding: `families/common/runtime/anchors3d.py`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from mmdeploy_ext.families.common.runtime.anchors3d import AnchorRule, decode
from mmdeploy_ext.runtime.lidar import LidarOnnx
from mmdeploy_ext.spec.facts import Count, optional

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.spec.metadata import Metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorFacts(AnchorRule):
    max_num: Count
    points: Literal['pillars'] | None = optional()


class AnchorOnnx(LidarOnnx):
    family = 'anchor3d'
    decode = staticmethod(decode)


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    """Return the boxes of a sweep after NMS within classes, best first, in its LiDAR frame, z at the bottom.

    `outputs` are, per level, logits of classes, deltas, and logits of directions (`anchors3d.decode`).
    """
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = AnchorOnnx, 'head'
