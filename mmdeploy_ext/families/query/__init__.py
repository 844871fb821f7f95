"""Detectors of queries: mmdet's own detectors and heads are used."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE, PASTE_MASKS
from mmdeploy_ext.spec.registry import register_family

register_family(
    'query',
    'mmdeploy_ext.families.query.family:QueryFamily',
    options=(GRID_SAMPLE, PASTE_MASKS),
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.query.runtime',
    keep_fp32=('region_network/[!bn]*',),  # all but backbone and neck, as of two-stage detectors
    claims=('DETR', 'DeformableDETR', 'DINO', 'CoDETR', 'MaskFormer', 'SparseRCNN', 'QueryInst'),
    exports=(
        'DETR, Deformable DETR, DINO, DDQ, Co-DINO, Mask2Former, MaskFormer, Sparse R-CNN and QueryInst '
        '(docs/models-2d.md)'
    ),
    similar_names=(
        'DETRHead', 'DeformableDETR', 'DINO', 'CoDETR', 'Transformer', 'Mask2Former', 'MaskFormer',
        'SparseRCNN', 'DIIHead', 'DynamicConv', 'QueryInst', 'DynamicMaskHead',
    ),
)  # fmt: skip
