"""LiDAR detectors with anchors in PyTorch as a stepper: mmdet3d's detectors, unpatched."""

from collections.abc import Mapping
from typing import Any

import torch

from mmdeploy_ext.families.anchor3d.graphs import facts_of
from mmdeploy_ext.families.common.anchor_heads import flat_outputs
from mmdeploy_ext.families.common.lidar_reference import LidarReference
from mmdeploy_ext.families.common.runtime.anchors3d import OUTPUTS


class AnchorReference(LidarReference):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        levels = len(tensors) // len(OUTPUTS)
        return tuple([tensors[f'{name}_{level}'] for level in range(levels)] for name in OUTPUTS)
