"""Dense one-stage heads: their family, graphs and runtime; mmdet's own detectors are used as they are."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.dense.options import OPTIONS

register_family(
    'dense',
    'mmdeploy_ext.families.dense.family:DenseFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.runtime.dense_facts:DenseFacts',
    runtime='mmdeploy_ext.families.dense.runtime',
    claims=('BaseDenseHead',),
)
