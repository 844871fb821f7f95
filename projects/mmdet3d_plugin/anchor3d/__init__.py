"""mmdet3d's one-stage LiDAR detectors with anchors: PointPillars, SECOND."""

from projects.mmdet3d_plugin.anchor3d import family

__all__ = ['family']
