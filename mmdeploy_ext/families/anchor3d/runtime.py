"""LiDAR detectors with anchors from points to boxes: a sparse backbone or pillars, and the dense head.

    runtime = AnchorOnnx('work_dirs/pointpillars')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('000008.bin', runtime.width))

The head's outputs become boxes by `parts/runtime/anchors3d.py`. Needs numpy and ONNX Runtime, no PyTorch;
without numba it is slow.
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
    """An exported detector with `Anchor3DHead`; `LidarOnnx` has the methods: `detect`, `step` and others."""

    family = 'anchor3d'
    decode = staticmethod(decode)


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    """Return the boxes of a sweep, best first, in its LiDAR frame: after NMS within classes, z at the bottom.

    It is for a program that runs the file of the head by itself. `max_num` of the metadata come back at most.

    `metadata` and `outputs` are those of that file: per level logits of classes, deltas, and logits of
    directions, see `anchors3d.decode`.
    """
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = AnchorOnnx, 'head'
"""The class that opens an export, and the name of its file that `quantize.py` puts in INT8."""
