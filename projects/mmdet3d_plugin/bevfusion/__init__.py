"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""

from projects.mmdet3d_plugin.bevfusion import encoders  # noqa: F401
