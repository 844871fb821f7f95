"""RT-DETR: detector, hybrid encoder, decoder and vd backbone for mmdet, and its family."""

from projects.mmdet_plugin.rtdetr import backbone, decoder, detector, encoder, family  # noqa: F401
