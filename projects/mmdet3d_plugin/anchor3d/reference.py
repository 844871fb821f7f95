"""LiDAR detectors with anchors in PyTorch as a stepper: mmdet3d's detectors as they are."""

import functools

from projects.mmdet3d_plugin.anchor3d.graphs import anchor_rule, flat_outputs
from projects.mmdet3d_plugin.centerpoint.reference import Reference

AnchorReference = functools.partial(Reference, rule=anchor_rule, flatten=flat_outputs)
"""CenterPoint's stepper with the outputs of `Anchor3DHead`."""
