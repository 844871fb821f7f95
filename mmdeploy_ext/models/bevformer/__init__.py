"""BEVFormer: a bird's-eye view that attends to its predecessor and to all cameras; test time alone."""

MODELS_3D = {
    'attention': (
        'CustomMSDeformableAttention',
        'MSDeformableAttention3D',
        'SpatialCrossAttention',
        'TemporalSelfAttention',
    ),
    'dataset': ('BevNuScenesDataset',),
    'detector': ('BEVFormer',),
    'head': ('BEVFormerHead',),
    'transformer': (
        'BEVFormerEncoder',
        'BEVFormerLayer',
        'DetectionTransformerDecoder',
        'PerceptionTransformer',
    ),
}
"""Module -> types; they need mmdet3d."""
