"""LiDAR detectors with anchors in PyTorch as a stepper: mmdet3d's detectors as they are."""

import torch

from projects.mmdet3d_plugin.anchor3d.graphs import anchor_rule, flat_outputs
from projects.mmdet3d_plugin.centerpoint.reference import Reference


class AnchorReference(Reference):
    """CenterPoint's stepper with the outputs of `Anchor3DHead`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, anchor_rule, flat_outputs)
