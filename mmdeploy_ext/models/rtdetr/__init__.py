"""RT-DETR: detector, hybrid encoder, decoder and vd backbone for mmdet, and its family."""

from mmdeploy_ext.models.rtdetr import backbone, decoder, detector, encoder  # noqa: F401
