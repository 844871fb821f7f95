"""RT-DETR: detector, hybrid encoder, decoder and vd backbone for mmdet."""

MODELS_2D = {
    'backbone': ('PResNet',),
    'decoder': ('RTDETRDecoder',),
    'detector': ('RTDETR',),
    'encoder': ('RTDETRHybridEncoder',),
}
"""Module -> types; they need mmdet."""
