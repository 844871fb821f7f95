"""Detectors with anchors in 3D from points to boxes: a sparse backbone or pillars, and the dense head.

    runtime = AnchorOnnx('work_dirs/pointpillars')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('000008.bin', runtime.width))

Needs numpy, numba and ONNX Runtime, no PyTorch.
"""

from mmdeploy_ext.families.anchor3d.runtime.boxes import AnchorRule, decode
from mmdeploy_ext.families.parts.runtime.lidar import LidarOnnx


class AnchorOnnx(LidarOnnx):
    """An exported detector with `Anchor3DHead`."""

    family = 'anchor3d'
    rules = AnchorRule
    decode = staticmethod(decode)


OPENS, QUANTISED = AnchorOnnx, 'head'
