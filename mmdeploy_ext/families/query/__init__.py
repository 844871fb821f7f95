"""MaskFormer and Mask2Former: mmdet's own detectors and heads are used."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE, PASTE_MASKS
from mmdeploy_ext.spec.registry import register_family

register_family(
    'query',
    'mmdeploy_ext.families.query.family:QueryMasksFamily',
    options=(GRID_SAMPLE, PASTE_MASKS),
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.query.runtime',
    keep_fp32=('region_network/[!bn]*',),  # of Sparse R-CNN and QueryInst in files of 0.3.0
    claims=('MaskFormer',),
    exports='Mask2Former and MaskFormer (docs/models-2d.md)',
    similar_names=('Mask2Former', 'MaskFormer'),
)
