"""BEVDet and BEVDet4D-longterm-depth at test time; parameters have upstream's names."""

MODELS_3D = {
    'dataset': ('BEVDetNuScenesDataset', 'LoadAnnotationsBEVDepth', 'PrepareImageInputs'),
    'detector': ('BEVDepth4D', 'BEVDet', 'BEVDet4D'),
    'encoders': ('CustomFPN', 'CustomResNet', 'FPN_LSS'),
    'head': ('BEVDetCenterHead',),
    'view_transformer': ('BEVDetViewTransformer', 'LSSViewTransformerBEVDepth'),
}
"""Module -> types; they need mmdet3d."""
