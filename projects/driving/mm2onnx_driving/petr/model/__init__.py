"""PETR and PETRv2: camera-only 3D detection; image tokens carry positions in 3D."""

MODELS_3D = {
    'detector': ('Petr3D',),
    'head': ('PETRHead', 'PETRv2Head'),
    'positions': ('SinePositionalEncoding3D',),
    'transformer': ('PETRTransformer', 'PETRTransformerDecoderLayer'),
}
"""Module -> types; they need mmdet3d."""
