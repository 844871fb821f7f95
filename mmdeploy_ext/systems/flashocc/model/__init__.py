"""FlashOcc at test time; parameters have upstream's names."""

MODELS_3D = {'detector': ('BEVDepthOCC', 'BEVDetOCC', 'BEVOCCHead2D', 'BEVOCCHead2D_V2')}
"""Module -> types; they need mmdet3d."""
