"""FlashOcc in PyTorch, with the detector's own test path."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.common.lidar_parts import Watch
from mmdeploy_ext.families.common.lift_reference import LiftReference
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.occupancy import Occupancy
from mmdeploy_ext.systems.flashocc.runtime import LOGITS


class FlashOccReference(LiftReference):
    head_name, outputs = 'occ_head', (LOGITS,)

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Watch]:
        return {self.head: lambda inputs, output: {LOGITS: output}}

    def tensors(self, values: Mapping[str, torch.Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        self._logits = values[LOGITS]
        return super().tensors(values, was_reset)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Occupancy | None:
        return super().boxes_of(outputs) if LOGITS in outputs else None  # a file with only classes

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self._logits = tensors[LOGITS]
        return self._logits

    def results(self, results: Sequence[Any]) -> Occupancy:
        best, second = self._logits[0].softmax(-1).topk(2).values.unbind(-1)
        labels = torch.as_tensor(results[0]).cpu().numpy().astype(np.uint8)
        return Occupancy(labels, (best - second).float().cpu().numpy(), self.head.num_classes - 1)
