"""FlashOcc: lifts images like BEVDet; channels of the encoded view become voxel heights."""

from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {'model': ('BEVDepthOCC', 'BEVDepthPano', 'BEVDetOCC')}
"""Module -> types; they need mmdet3d."""

register_family(
    'flashocc',
    'mm2onnx_driving.flashocc.family:FlashOccFamily',
    options=(own_contract('portable', 'one graph of plain operators; poses are inputs'),),
    facts='mm2onnx_driving.flashocc.runtime:FlashOccFacts',
    runtime='mm2onnx_driving.flashocc.runtime',
    library='mmdet3d',
    claims=('BEVOCCHead2D', 'BEVOCCHead2D_V2', 'BEVOCCHead3D'),
    exports='BEVDetOCC, BEVDepthOCC and BEVDepthPano with BEVOCCHead2D (docs/models-cameras.md)',
    similar_names=('OCC',),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
