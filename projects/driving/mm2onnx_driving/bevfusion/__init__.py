"""BEVFusion of cameras and LiDAR."""

import dataclasses

from mmdeploy_ext.spec.options import SPARSE_FORM, own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'fusion': (
        'BEVFusion',
        'ConvFuser',
        'GeneralizedLSSFPN',
        'GeneralizedResNet',
        'LSSFPN',
    ),
    'transfusion_head': ('TransFusionHead',),
    'center_head': (
        'BEVFusionCenterHead',
        'TransFusionBBoxCoder',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'bevfusion_det',
    'mm2onnx_driving.bevfusion.family:BEVFusionFamily',
    options=(
        own_contract('portable', 'graphs of standard operators, points to boxes'),
        dataclasses.replace(SPARSE_FORM, only_with=('contract', 'portable')),
    ),
    facts='mm2onnx_driving.bevfusion.runtime:BEVFusionFacts',
    runtime='mm2onnx_driving.bevfusion.runtime',
    library='mmdet3d',
    claims=('BEVFusion',),
    exports='BEVFusion of cameras and LiDAR (docs/models-lidar.md)',
    similar_names=('TransFusion', 'BEVFusion', 'LSS'),
    of_config='the config decides grid and cameras',
    used_by={'': FILM},
)
