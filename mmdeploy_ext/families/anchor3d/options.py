"""Options of LiDAR detectors with anchors."""

from mmdeploy_ext.families.parts.options import LIDAR_OPTIONS

OPTIONS = LIDAR_OPTIONS
"""Options of the family."""
