"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from mmdeploy_ext.models.sparse_backbone import encoders, model  # noqa: F401
