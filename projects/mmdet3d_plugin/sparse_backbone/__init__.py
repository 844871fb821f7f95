"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from projects.mmdet3d_plugin.sparse_backbone import encoders, family, model  # noqa: F401
