"""PETR and PETRv2: image tokens carry positions in 3D; PETRv2 also sees the frame before."""

from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'model': ('PETRHead', 'PETRTransformer', 'PETRTransformerDecoderLayer', 'PETRv2Head', 'Petr3D'),
    'steps': ('SinePositionalEncoding3D',),
}
"""Module -> types; they need mmdet3d."""

OPTIONS = (
    own_contract(
        'portable',
        'three graphs; the position embedding is separate, and the head rejects one of another calibration',
    ),
)

register_family(
    'petr',
    'mm2onnx_driving.petr.family:PetrFamily',
    options=OPTIONS,
    facts='mm2onnx_driving.petr.runtime:PetrFacts',
    runtime='mm2onnx_driving.petr.runtime',
    library='mmdet3d',
    claims=('PETRHead',),
    exports='Petr3D with PETRHead or PETRv2Head (docs/models-cameras.md)',
    similar_names=('PETR', 'DETR3D'),
    of_config="size and cameras are the config's",
    used_by={'': FILM},
)
register_family(
    'petrv2',
    'mm2onnx_driving.petr.family:PetrV2Family',
    options=OPTIONS,
    facts='mm2onnx_driving.petr.runtime:PetrFacts',
    runtime='mm2onnx_driving.petr.runtime',
    library='mmdet3d',
    claims=('PETRv2Head',),
    exports='Petr3D with PETRHead or PETRv2Head (docs/models-cameras.md)',
    similar_names=('PETR', 'DETR3D'),
    of_config="size and cameras are the config's",
    used_by={'': FILM},
)
