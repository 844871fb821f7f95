"""Options of LiDAR detectors with anchors."""

import dataclasses

from mmdeploy_ext.families.parts.options import LIDAR_CONTRACT, LIDAR_OPTIONS

OPTIONS = tuple(
    dataclasses.replace(option, choices=option.choices[:1]) if option == LIDAR_CONTRACT else option
    for option in LIDAR_OPTIONS
)
"""The options of LiDAR detectors; of the contracts there is only the first, 'deploy'."""
