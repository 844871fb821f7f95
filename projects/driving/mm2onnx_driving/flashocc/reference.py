"""FlashOcc in PyTorch, with the detector's own test path."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.lift_reference import LiftReference
from mm2onnx_driving.flashocc.graphs import center_branches, centers_of
from mm2onnx_driving.flashocc.instances import CENTER_MAPS, FIRST_ID
from mm2onnx_driving.flashocc.runtime import LOGITS
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.occupancy import Instances, Occupancy
from mmdeploy_ext.runtime.tasks.occupancy import PLACE_BAR, SCORE_BAR


class FlashOccReference(LiftReference):
    head_name, outputs = 'occ_head', (LOGITS,)

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        super().__init__(model, notes)
        self.parts = {LOGITS: self.head}
        self.centers = centers_of(model)
        if self.centers is not None:
            self.parts |= zip(CENTER_MAPS, center_branches(self.centers), strict=True)
            self.outputs = tuple(self.parts)

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
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
        row_of = classes.int().sort().indices.argsort()
        is_object = ids >= FIRST_ID
        rows = torch.full_like(ids, -1, dtype=torch.int32)
        rows[is_object] = row_of[ids[is_object].long() - FIRST_ID].int()
        found = dict(places=places, scores=scores, labels=classes.long())
        centers, sure = with_unsure(found, possible_centers(maps, self.centers.bbox_coder))
        around = centers['places'][:, None] + PLACE_BAR * places.new_tensor([[-1.0], [1.0]])
        cells = ((around - self.model.st.to(places)) / self.model.sx.to(places)).int()
        arrays = {name: array(value) for name, value in centers.items()}
        return Instances(array(rows), **arrays, sure=array(sure), cells=array(cells))


def possible_centers(maps: Mapping[str, torch.Tensor], coder: Any) -> dict[str, torch.Tensor]:
    """Return the centres that maps may have with scores off by `SCORE_BAR` and places by `PLACE_BAR`.

    `sure` (n,) says which ones they have in any case. A centre is at least as high as the 8 cells around it,
    above the threshold, in range, and one of the best `max_num`.
    """
    heat = maps['heatmap'][0].sigmoid()
    rows, columns = heat.shape[1:]
    padded = functional.pad(heat, (1, 1, 1, 1))
    beside = torch.zeros_like(heat)
    for row, column in itertools.product(range(3), repeat=2):
        if (row, column) != (1, 1):
            beside = beside.maximum(padded[:, row : row + rows, column : column + columns])
    lead = torch.minimum(heat - beside, heat - coder.score_threshold)
    labels, rows, columns = (lead >= -SCORE_BAR).nonzero(as_tuple=True)
    scores, lead = heat[labels, rows, columns], lead[labels, rows, columns]
    shift, height = (maps[name][0, :, rows, columns].T for name in ('reg', 'height'))
    cells = torch.stack([columns, rows], 1) + shift
    xy = cells * coder.out_size_factor * cells.new_tensor(coder.voxel_size[:2])
    places = torch.cat([xy + cells.new_tensor(coder.pc_range[:2]), height], 1)
    low, high = places.new_tensor(coder.post_center_range).split(3)
    margin = torch.minimum(places - low, high - places).amin(1)
    before = counted(scores, scores - SCORE_BAR) - 1  # without itself
    surely_before = counted(scores[lead > SCORE_BAR], scores + SCORE_BAR)
    sure = (lead > SCORE_BAR) & (margin > PLACE_BAR) & (before < coder.max_num)
    kept = (margin >= -PLACE_BAR) & (surely_before < coder.max_num)
    return dict(places=places[kept], scores=scores[kept], labels=labels[kept], sure=sure[kept])


def counted(scores: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many scores are at least as high as each limit (n,)."""
    return len(scores) - torch.searchsorted(scores.sort().values, limits)


def with_unsure(
    found: Mapping[str, torch.Tensor], possible: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the found centres, then the other possible ones, and which are sure."""
    apart = (found['places'][:, None] - possible['places']).abs().amax(-1)
    is_same = (apart <= PLACE_BAR) & (found['labels'][:, None] == possible['labels'])
    sure = ~(is_same & ~possible['sure']).any(1)
    others = ~is_same.any(0)
    centers = {name: torch.cat([values, possible[name][others]]) for name, values in found.items()}
    return centers, torch.cat([sure, sure.new_zeros(int(others.sum()))])
