"""LiDAR detectors with anchors: options, and the schema of the post-processing in their metadata."""

import dataclasses

from mmdeploy_ext.contract.schema import one_of, open_record
from mmdeploy_ext.families.parts.options import ANCHOR_FACTS, LIDAR_CONTRACT, LIDAR_OPTIONS, check_anchors

OPTIONS = tuple(
    dataclasses.replace(option, choices=option.choices[:1]) if option == LIDAR_CONTRACT else option
    for option in LIDAR_OPTIONS
)
"""The options of LiDAR detectors; of the contracts there is only the first, 'deploy'."""
POSTPROCESS = open_record(points=one_of('pillars'), **ANCHOR_FACTS, also=check_anchors)
"""Schema of `graphs.postprocess_facts`; its keys are explained by `AnchorRule`."""
