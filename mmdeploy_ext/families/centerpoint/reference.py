"""CenterPoint in PyTorch as a stepper.

Glossary: C channels, H, W cells of the bird's-eye view.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mmdeploy_ext.families.centerpoint.graphs import facts_of, flat_outputs
from mmdeploy_ext.families.parts.lidar_reference import LidarReference


class CenterPointReference(LidarReference):
    """The unpatched detector with the outputs of `CenterHead`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return the outputs of `CenterHead` as the arguments of its `get_bboxes` before the metas.

        That is one argument, the tasks with one level each. `tensors` are outputs (1, C, H, W) by names such
        as 'reg_0', those of task 0 first, as `flat_outputs` has them.
        """
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            output, task = name.rsplit('_', 1)
            tasks.setdefault(task, {})[output] = tensor
        return (tuple([outputs] for outputs in tasks.values()),)
