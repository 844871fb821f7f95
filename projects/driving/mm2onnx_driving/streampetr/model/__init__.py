"""StreamPETR: camera-only 3D detection with a temporal memory."""

MODELS_3D = {
    'coder': ('NMSFreeCoder',),
    'detector': ('Petr3D', 'Petr3DONNX', 'Petr3DPTH'),
    'focal_head': ('FocalHead',),
    'head': ('StreamPETRHead', 'StreamPETRHeadONNX', 'StreamPETRHeadPTH'),
    'transformer': ('PETRTemporalDecoderLayer', 'PETRTemporalTransformer'),
}
"""Module -> types; they need mmdet3d."""
