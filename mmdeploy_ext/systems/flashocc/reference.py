"""FlashOcc in PyTorch, with the detector's own test path."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.common.camera_reference import array
from mmdeploy_ext.families.common.lidar_parts import Watch
from mmdeploy_ext.families.common.lift_reference import LiftReference
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.occupancy import Instances, Occupancy
from mmdeploy_ext.systems.flashocc.graphs import center_branches, centers_of
from mmdeploy_ext.systems.flashocc.instances import CENTER_MAPS, FIRST_ID
from mmdeploy_ext.systems.flashocc.runtime import LOGITS


class FlashOccReference(LiftReference):
    head_name, outputs = 'occ_head', (LOGITS,)

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        super().__init__(model, notes)
        self.parts = {LOGITS: self.head}
        self.centers = centers_of(model)
        if self.centers is not None:
            self.parts |= zip(CENTER_MAPS, center_branches(self.centers), strict=True)
            self.outputs = tuple(self.parts)

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Watch]:
        return {part: lambda inputs, output, name=name: {name: output} for name, part in self.parts.items()}

    def tensors(self, values: Mapping[str, torch.Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        self._tensors = values
        return super().tensors(values, was_reset)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Occupancy | None:
        return super().boxes_of(outputs) if LOGITS in outputs else None  # a file with only classes

    def substitutes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        self._tensors = tensors
        names = {part: name for name, part in self.model.named_modules()}
        return {f'{names[part]}.forward': tensors[name] for name, part in self.parts.items()}

    def results(self, results: Sequence[Any]) -> Occupancy:
        best, second = self._tensors[LOGITS][0].softmax(-1).topk(2).values.unbind(-1)
        labels = results[0] if self.centers is None else results[0]['pred_occ']
        labels = torch.as_tensor(labels).cpu().numpy().astype(np.uint8)
        occupancy = Occupancy(labels, (best - second).float().cpu().numpy(), self.head.num_classes - 1)
        if self.centers is None:
            return occupancy
        return occupancy.with_instances(self.instances_of(results[0]['pano_inst']))

    def instances_of(self, ids: torch.Tensor) -> Instances:
        """Return the instances of voxels (X, Y, Z); upstream's ids are the order of their classes."""
        maps = {name: self._tensors[name] for name in CENTER_MAPS}
        (places,), (scores,), (classes,) = self.centers.get_centers(([maps],), None)
        cells = ((places - self.model.st.to(places)) / self.model.sx.to(places)).int()
        row_of = classes.int().sort().indices.argsort()
        is_object = ids >= FIRST_ID
        rows = torch.full_like(ids, -1, dtype=torch.int32)
        rows[is_object] = row_of[ids[is_object].long() - FIRST_ID].int()
        arrays = [array(value) for value in (rows, places, cells, scores, classes.long())]
        return Instances(*arrays, float(self.centers.bbox_coder.score_threshold))
