"""Detectors of queries: their families and graphs; mmdet's own detectors and heads are used as they are."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.query.options import (
    OPTIONS,
    PANOPTIC_KEEP_FP32,
    REGION_KEEP_FP32,
    REGION_MASK_OPTIONS,
)

register_family(
    'query',
    'mmdeploy_ext.families.query.family:QueryFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('DETR', 'DeformableDETR', 'DINO', 'CoDETR'),
    exports='DETR, Deformable DETR, DINO and Co-DINO (mmdeploy_ext/families/query/README.md)',
    similar_names=('DETRHead', 'DeformableDETR', 'DINO', 'CoDETR', 'Transformer'),
)
register_family(
    'query_masks',
    'mmdeploy_ext.families.query.family:QueryMasksFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('MaskFormer',),
    exports='Mask2Former, its instances (mmdeploy_ext/families/query/README.md)',
    similar_names=('Mask2Former', 'MaskFormer'),
)
register_family(
    'query_panoptic',
    'mmdeploy_ext.families.query.family:QueryPanopticFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryPanopticFacts',
    runtime='mmdeploy_ext.families.query.runtime',
    keep_fp32=PANOPTIC_KEEP_FP32,
    claims=('MaskFormer',),
    exports='Mask2Former, its panoptic maps (mmdeploy_ext/families/query/README.md)',
    similar_names=('Mask2Former', 'MaskFormer'),
)
register_family(
    'query_regions',
    'mmdeploy_ext.families.query.family:QUERY_REGIONS',
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=REGION_KEEP_FP32,
    claims=('SparseRCNN', 'QueryInst'),
    exports='Sparse R-CNN (mmdeploy_ext/families/query/README.md)',
    similar_names=('SparseRCNN', 'DIIHead', 'DynamicConv'),
)
register_family(
    'query_regions_masks',
    'mmdeploy_ext.families.query.family:QUERY_REGIONS_MASKS',
    options=REGION_MASK_OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.pasted_masks',
    keep_fp32=REGION_KEEP_FP32,
    claims=('SparseRCNN', 'QueryInst'),
    exports='QueryInst (mmdeploy_ext/families/query/README.md)',
    similar_names=('QueryInst', 'DynamicMaskHead'),
)
