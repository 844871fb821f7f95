"""BEVFusion of cameras and LiDAR."""

from mm2onnx_driving.bevfusion.options import OPTIONS
from mmdeploy_ext.spec.registry import FILM, register_family

register_family(
    'bevfusion_det',
    'mm2onnx_driving.bevfusion.family:BEVFusionFamily',
    options=OPTIONS,
    facts='mm2onnx_driving.bevfusion.facts:BEVFusionFacts',
    runtime='mm2onnx_driving.bevfusion.runtime.model',
    library='mmdet3d',
    claims=('BEVFusion',),
    exports='BEVFusion of cameras and LiDAR (docs/models-lidar.md)',
    similar_names=('TransFusion', 'BEVFusion', 'LSS'),
    of_config='the config decides grid and cameras',
    used_by={'': FILM},
)
