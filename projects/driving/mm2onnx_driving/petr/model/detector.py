"""The detector of PETR and PETRv2 at test time.

Source: megvii-research/PETR f7525f9, `detectors/petr3d.py`.
"""

from mmdet.models import DETECTORS

from mm2onnx_driving.layers.camera_detector import CameraDetector
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS, beside=('PETRHead', 'PETRv2Head'))
class Petr3D(CameraDetector):
    """Camera-only detector.

    PETRv2 takes 12 pictures: 6 of a frame, then 6 of a frame before, with `lidar2img` from the present LiDAR
    frame to their pixels.
    """
