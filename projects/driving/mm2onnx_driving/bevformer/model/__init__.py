"""BEVFormer at test time: a bird's-eye view that attends to its predecessor, and objects in it."""

MODELS_3D = {'detector': ('BEVFormer',), 'head': ('BEVFormerHead',)}
"""Module -> types; they need mmdet3d."""
