"""CenterPoint in PyTorch as a stepper: mmdet3d's detector as it is."""

from collections.abc import Mapping
from typing import Any

import torch

from mmdeploy_ext.families.centerpoint.graphs import box_rule, flat_outputs
from mmdeploy_ext.families.parts.lidar_reference import LidarReference


class Reference(LidarReference):
    """The stepper with the outputs of `CenterHead`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, box_rule, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return named outputs as `CenterHead.get_bboxes` takes them: tasks, of one level each."""
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, task = name.rsplit('_', 1)
            tasks.setdefault(task, {})[kind] = tensor
        return (tuple([named] for named in tasks.values()),)
