"""CenterPoint in PyTorch as a stepper."""

from collections.abc import Mapping
from typing import Any

import torch

from mmdeploy_ext.families.centerpoint.graphs import facts_of, flat_outputs
from mmdeploy_ext.families.common.lidar_reference import LidarReference


class CenterPointReference(LidarReference):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            output, task = name.rsplit('_', 1)
            tasks.setdefault(task, {})[output] = tensor
        return tuple([outputs] for outputs in tasks.values())
