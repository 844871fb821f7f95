"""BEVFormer's detector."""

from mmdet.models import DETECTORS

from mm2onnx_driving.layers.bev_view.detector import BevDetector
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS)
class BEVFormer(BevDetector):
    """Bird's-eye view and objects."""
