"""StreamPETR: camera-only 3D detection with a temporal memory."""

from mmdeploy_ext.families.common.options import LAYERS
from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'model': (
        'FocalHead',
        'NMSFreeCoder',
        'PETRTemporalDecoderLayer',
        'PETRTemporalTransformer',
        'Petr3D',
        'Petr3DONNX',
        'Petr3DPTH',
        'StreamPETRHead',
        'StreamPETRHeadONNX',
        'StreamPETRHeadPTH',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'streampetr',
    'mm2onnx_driving.streampetr.family:StreamPetrFamily',
    options=(
        own_contract('deploy', 'three graphs, state in the last LiDAR frame'),
        LAYERS,
    ),
    facts='mm2onnx_driving.streampetr.runtime:StreamPetrFacts',
    runtime='mm2onnx_driving.streampetr.runtime',
    library='mmdet3d',
    claims=('StreamPETRHead', 'StreamPETRHeadPTH', 'StreamPETRHeadONNX'),
    exports='Petr3D with StreamPETRHead (docs/models-cameras.md)',
    similar_names=('PETR', 'DETR3D', 'BEVFormer', 'FCOSMono3D', 'Sparse4D'),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
