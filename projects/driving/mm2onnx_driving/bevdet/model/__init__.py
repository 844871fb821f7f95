"""BEVDet and BEVDet4D-longterm-depth at test time; parameters have upstream's names."""

MODELS_3D = {'detector': ('BEVDepth4D', 'BEVDet', 'BEVDet4D'), 'head': ('BEVDetCenterHead',)}
"""Module -> types; they need mmdet3d."""
