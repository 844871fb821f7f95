"""BEVFormer: a bird's-eye view of all cameras that remembers the frame before, and objects found in it."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.bevformer.options import OPTIONS

register_family(
    'bevformer',
    'mmdeploy_ext.families.bevformer.family:BevFormerFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.bevformer.facts:BevFormerFacts',
    runtime='mmdeploy_ext.families.bevformer.runtime',
    library='mmdet3d',
    claims=('BEVFormerHead',),
)
