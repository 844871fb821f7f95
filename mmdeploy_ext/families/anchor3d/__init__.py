"""mmdet3d's one-stage LiDAR detectors with anchors: PointPillars, SECOND."""
