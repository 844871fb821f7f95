"""BEVDet and BEVDet4D in PyTorch as a stepper: the detector's own `forward`, its past views kept here.

Views of frames before are kept as they were when their frame was the present one, as upstream's sequential
path and all deployments keep them; the published evaluation computes them again with the present poses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.bevdet.graphs import adjacent_of, facts_of, head_names
from mm2onnx_driving.bevdet.runtime import VIEW
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.lift_graphs import view_axes
from mm2onnx_driving.common.lift_reference import LiftReference, sensor_poses
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import Frame, StreamState

KEPT = (
    'views of previous frames are stored as they were computed, as in all deployments; the published '
    'evaluation computes them again from the old images'
)


class BevDetReference(LiftReference):
    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.adjacent, self.facts = adjacent_of(model), facts_of(model)
        self.outputs = (*([VIEW] if self.adjacent else []), *self.facts.output_names)
        super().__init__(model, [*([KEPT] if self.adjacent else []), *notes])

    def forget(self) -> None:
        self._views: list[tuple[np.ndarray, np.ndarray]] = []  # (C, Y, X), first camera to the map (4, 4)

    def memory(self) -> dict[str, np.ndarray]:
        if not self.adjacent:
            return {}
        views = np.zeros((self.adjacent, *view_axes(self.model)), np.float32)
        poses, exists = np.tile(np.eye(4), (self.adjacent, 1, 1)), np.zeros(self.adjacent, np.float32)
        for index, (view, pose) in enumerate(self._views):
            views[index], poses[index], exists[index] = view, np.linalg.solve(self._last.ego_pose, pose), 1
        return dict(views=views, exists=exists, camera2ego=poses)

    def remember(self, state: StreamState) -> None:
        rows = zip(*(state.tensors[name] for name in ('views', 'camera2ego', 'exists')), strict=True)
        self._views = [(view, state.ego_pose @ pose) for view, pose, exists in rows if exists]

    def step(self, frame: Frame) -> Any:
        if self.is_first(frame):
            self.forget()
        if self.adjacent and len(self._views) < self.adjacent:
            self._missing = self.view_of(frame)
        result = super().step(frame)
        if self.adjacent:
            newest = result.outputs[VIEW][0], frame.ego_pose @ sensor_poses(frame)[0]
            self._views = [newest, *self._views][: self.adjacent]
        return result

    def view_of(self, frame: Frame) -> np.ndarray:
        """Return the view (C, Y, X) of a frame, which stands for frames before that are not there."""
        self._missing = np.zeros(view_axes(self.model), np.float32)
        seen: list[torch.Tensor] = []
        (module,) = self.hooks(frame).keys() - {self.head}
        handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
        with torch.no_grad(), self.further_taps(frame):
            self.model(**self.data(frame, True))
        handle.remove()
        return array(seen[0])[0]

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        def maps(inputs: Any, tasks: Any) -> dict[str, Any]:
            named = enumerate(tasks)
            return {
                f'{name}_{index}': task[0][name] for index, task in named for name in head_names(self.model)
            }

        if not self.adjacent:
            return {self.head: maps}
        last = self.model.pre_process_net if self.model.pre_process else self.model.img_view_transformer
        return {self.head: maps, last: lambda inputs, output: {VIEW: output[0]}}

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        if not self.adjacent:
            return super().data(frame, is_first)
        poses, intrinsics, shared = self.calibration_of(frame)
        count, views, before = len(frame.images), [], []
        for index in range(self.adjacent):
            if index < len(self._views):
                view, camera = self._views[index]
                moved = np.linalg.solve(np.asarray(frame.ego_pose, np.float64), camera)
            else:
                view, moved = self._missing, poses[0]
            views.append(view)
            before.append(np.tile(moved, (count, 1, 1)))
        unit = np.tile(np.eye(4), (count, 1, 1))
        present, units = np.stack([poses] * self.adjacent), np.stack([unit] * self.adjacent)
        bda = np.stack([np.eye(3)] * self.adjacent)
        present, units, before, bda = (
            self.tensor(value) for value in (present, units, np.stack(before), bda)
        )
        images, matrices, *post = (self.tensor(value)[None] for value in (frame.images, intrinsics, *shared))
        given = [images, present, units, matrices, before, units, *post, bda]
        return self.call_of(frame, given, sequential=True, feat_prev=self.tensor(np.stack(views)))

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name != VIEW:
                head, task = name.rsplit('_', 1)
                tasks.setdefault(task, {})[head] = tensor
        return tuple([maps] for maps in tasks.values())
