"""CenterPoint from points to boxes: the sparse backbone, or pillars, and the dense head on ONNX Runtime.

    runtime = CenterPointOnnx('work_dirs/centerpoint')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('sweep.pcd.bin', runtime.width))

Needs numpy, numba and ONNX Runtime, no PyTorch.
"""

from mmdeploy_ext.families.centerpoint.runtime.boxes import BoxRule, decode
from mmdeploy_ext.families.parts.runtime.lidar import LidarOnnx


class CenterPointOnnx(LidarOnnx):
    """An exported CenterPoint."""

    family = 'centerpoint'
    rules = BoxRule
    decode = staticmethod(decode)


OPENS, QUANTISED = CenterPointOnnx, 'head'
