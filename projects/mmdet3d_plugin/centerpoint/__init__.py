"""CenterPoint: mmdet3d's own LiDAR detector, exported as a sparse backbone and a dense head."""

from projects.mmdet3d_plugin.centerpoint import family

__all__ = ['family']
