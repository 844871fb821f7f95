"""Sparse4D v3: instances of six cameras with a memory and track ids."""

import dataclasses

from mmdeploy_ext.families.common.options import GRID_SAMPLE
from mmdeploy_ext.spec.options import CONTRACT, own_contract
from mmdeploy_ext.spec.registry import FILM, register_family

MODELS_3D = {
    'model': (
        'InstanceBank',
        'Sparse4D',
        'Sparse4DHead',
        'SparseBox3DDecoder',
    ),
}
"""Module -> types; they need mmdet3d."""

register_family(
    'sparse4d',
    'mm2onnx_driving.sparse4d.family:Sparse4DFamily',
    options=(
        own_contract('portable', 'one graph of plain operators for all frames'),
        dataclasses.replace(
            GRID_SAMPLE,
            default='gather',
            help='gather (default) skips cameras that do not see an instance; operator uses GridSample '
            'with fixed shapes',
            only_with=('contract', 'portable'),
            group=CONTRACT.group,
        ),
    ),
    facts='mm2onnx_driving.sparse4d.runtime:Sparse4DFacts',
    runtime='mm2onnx_driving.sparse4d.runtime',
    library='mmdet3d',
    claims=('Sparse4D', 'Sparse4DHead'),
    exports='Sparse4D with Sparse4DHead (docs/models-cameras.md)',
    similar_names=('Sparse4D', 'SparseDrive'),
    of_config='the config decides size and cameras',
    used_by={'': FILM},
)
