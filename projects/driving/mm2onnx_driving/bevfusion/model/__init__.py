"""BEVFusion of cameras and LiDAR."""

MODELS_3D = {
    'center_head': ('BEVFusionCenterHead',),
    'coder': ('TransFusionBBoxCoder',),
    'fusion': ('BEVFusion', 'ConvFuser'),
    'head': ('TransFusionHead',),
    'neck': ('GeneralizedLSSFPN', 'GeneralizedResNet', 'LSSFPN'),
}
"""Module -> types; they need mmdet3d."""
