"""LiDAR detectors with anchors from points to boxes: a sparse backbone or pillars, and the dense head.

    runtime = AnchorOnnx('work_dirs/pointpillars')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('000008.bin', runtime.width))

The head's outputs become boxes by `parts/runtime/anchors3d.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.families.parts.runtime.anchors3d import decode
from mmdeploy_ext.runtime.lidar import LidarOnnx

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D


class AnchorOnnx(LidarOnnx):
    family = 'anchor3d'
    decode = staticmethod(decode)


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    """Return the boxes of a sweep, best first, in its LiDAR frame: after NMS within classes, z at the bottom.

    `metadata` and `outputs` belong to the head's file: per level logits of classes, deltas, and logits of
    directions, see `anchors3d.decode`.
    """
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = AnchorOnnx, 'head'
