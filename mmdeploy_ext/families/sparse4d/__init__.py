"""Sparse4D v3: instances of six cameras with a memory and track ids."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.sparse4d.options import OPTIONS

register_family(
    'sparse4d',
    'mmdeploy_ext.families.sparse4d.family:Sparse4DFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.sparse4d.facts:Sparse4DFacts',
    runtime='mmdeploy_ext.families.sparse4d.runtime',
    library='mmdet3d',
    claims=('Sparse4D', 'Sparse4DHead'),
)
