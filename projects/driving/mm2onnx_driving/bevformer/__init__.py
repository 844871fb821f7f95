"""BEVFormer: a bird's-eye view of all cameras, kept from frame to frame, and objects found in it."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE
from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'family': (
        'BEVFormer',
        'BEVFormerHead',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'bevformer',
    'mm2onnx_driving.bevformer.family:BevFormerFamily',
    options=(
        own_contract(
            'portable', "one graph of plain operators; motion and the last bird's-eye view are inputs"
        ),
        GRID_SAMPLE,
    ),
    facts='mm2onnx_driving.common.runtime.bev_frames:BevFacts',
    runtime='mm2onnx_driving.bevformer.runtime',
    library='mmdet3d',
    claims=('BEVFormerHead',),
    exports='BEVFormer with BEVFormerHead (docs/models-cameras.md)',
    similar_names=('BEVFormer', 'DETR3D'),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
