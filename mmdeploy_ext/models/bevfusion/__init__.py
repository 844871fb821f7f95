"""BEVFusion of cameras and LiDAR."""

from mmdeploy_ext.models.bevfusion import center_head, coder, fusion, head, neck, view_transform  # noqa: F401
