"""RT-DETR: detector, hybrid encoder, decoder and vd backbone."""

from projects.mmdet_plugin.rtdetr import backbone, decoder, detector, encoder  # noqa: F401
