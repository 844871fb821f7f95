"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from projects.mmdet3d_plugin.bevfusion import encoders, family, model  # noqa: F401
