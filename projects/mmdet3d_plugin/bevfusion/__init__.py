"""BEVFusion of cameras and LiDAR."""

from projects.mmdet3d_plugin.bevfusion import (  # noqa: F401
    center_head,
    coder,
    family,
    fusion,
    head,
    neck,
    view_transform,
)
