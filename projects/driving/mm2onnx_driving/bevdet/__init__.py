"""BEVDet and BEVDet4D: pictures are lifted into a bird's-eye view, which is added up with views before."""

from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {'model': ('BEVDepth4D', 'BEVDet', 'BEVDet4D', 'BEVDetCenterHead')}
"""Module -> types; they need mmdet3d."""

register_family(
    'bevdet',
    'mm2onnx_driving.bevdet.family:BevDetFamily',
    options=(
        own_contract(
            'portable',
            'one graph of plain operators; poses, previous views and their motion are inputs',
        ),
    ),
    facts='mm2onnx_driving.bevdet.runtime:BevDetFacts',
    runtime='mm2onnx_driving.bevdet.runtime',
    library='mmdet3d',
    claims=('BEVDet', 'BEVDet4D', 'BEVDepth4D'),
    exports='BEVDet, BEVDet4D and BEVDepth4D with CenterHead (docs/models-cameras.md)',
    similar_names=('BEVDet', 'BEVDepth', 'BEVStereo', 'LSS'),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
