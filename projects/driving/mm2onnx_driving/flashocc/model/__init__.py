"""FlashOcc at test time; parameters have upstream's names."""

MODELS_3D = {'detector': ('BEVDepthOCC', 'BEVDepthPano', 'BEVDetOCC')}
"""Module -> types; they need mmdet3d."""
