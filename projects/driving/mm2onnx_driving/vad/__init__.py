"""VAD: boxes with trajectories, lines and a plan, from a bird's-eye view that is kept."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE
from mmdeploy_ext.spec.options import own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'model': (
        'CustomTransformerDecoder',
        'MapDetectionTransformerDecoder',
        'VAD',
        'VADCustomNuScenesDataset',
        'VADHead',
        'VADPerceptionTransformer',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'vad',
    'mm2onnx_driving.vad.family:VadFamily',
    options=(
        own_contract(
            'portable', "one graph of plain operators; motion and the last bird's-eye view are inputs"
        ),
        GRID_SAMPLE,
    ),
    facts='mm2onnx_driving.vad.runtime:VadFacts',
    runtime='mm2onnx_driving.vad.runtime',
    library='mmdet3d',
    claims=('VADHead',),
    exports='VAD with VADHead (docs/models-cameras.md)',
    similar_names=('VAD',),
    of_config="size and cameras are the config's",
    used_by={'': FILM},
)
