"""Sparse4D v3 at test time: instances of objects that are refined, remembered and tracked."""

MODELS_3D = {
    'bank': ('InstanceBank',),
    'detector': ('Sparse4D',),
    'head': ('Sparse4DHead', 'SparseBox3DDecoder'),
}
"""Module -> types; they need mmdet3d."""
