"""BEVDet and BEVDet4D in PyTorch as a stepper: the detector's own `forward`, its past views kept here.

Views of frames before are kept as they were when their frame was the present one, as upstream's sequential
path and all deployments keep them; the published evaluation computes them again with the present poses.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import nn

from mmdeploy_ext.families.common.camera_reference import CameraReference, array
from mmdeploy_ext.families.common.lidar_parts import Watch
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.synthetic.moments import special_drive
from mmdeploy_ext.systems.bevdet.graphs import adjacent_of, facts_of, head_names, view_axes
from mmdeploy_ext.systems.bevdet.runtime import BORDER, VIEW, border_points, frustum_places

KEPT = (
    'views of frames before are kept as they were, as all deployments keep them; the published evaluation '
    'lifts old pictures again'
)


class BevDetReference(CameraReference):
    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.adjacent, self.facts = adjacent_of(model), facts_of(model)
        self.outputs = (*([VIEW] if self.adjacent else []), *self.facts.output_names)
        self._at_borders: dict[bytes, int] = {}
        super().__init__(model, [*([KEPT] if self.adjacent else []), *notes])

    @property
    def notes(self) -> list[str]:
        if not any(self._at_borders.values()):
            return super().notes
        return [
            *super().notes,
            f'up to {max(self._at_borders.values())} lifted points of a frame are within {BORDER:g} cells of '
            f"a cell's border: PyTorch, which places points in float32, may take the neighbouring cell",
        ]

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, (0.5, 0.5, 0.5))

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'forward')])

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
        with torch.no_grad():
            self.model(**self.data(frame, True))
        handle.remove()
        return array(seen[0])[0]

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Watch]:
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
        poses, count = sensor_poses(frame), len(frame.images)
        crop = self.model.rule.crop_matrix().astype(np.float64)
        post_rot, post_tran = np.eye(3), np.array([*crop[:2, 2], 0.0])
        post_rot[:2, :2] = crop[:2, :2]
        intrinsics = np.linalg.solve(crop, frame.intrinsics[:, :3, :3])
        self.count_border_points(poses, intrinsics, crop)
        shared = [np.stack([matrix] * count) for matrix in (post_rot, post_tran)]
        unit = np.tile(np.eye(4), (count, 1, 1))
        inputs: Sequence[Any] = (frame.images, poses, unit, intrinsics, *shared, np.eye(3))
        how: dict[str, Any] = {}
        if self.adjacent:
            views, before = [], []
            for index in range(self.adjacent):
                if index < len(self._views):
                    view, camera = self._views[index]
                    moved = np.linalg.solve(np.asarray(frame.ego_pose, np.float64), camera)
                else:
                    view, moved = self._missing, poses[0]
                views.append(view)
                before.append(np.tile(moved, (count, 1, 1)))
            present, units = np.stack([poses] * self.adjacent), np.stack([unit] * self.adjacent)
            bda = np.stack([np.eye(3)] * self.adjacent)
            per_frame = dict(enumerate((present, units, np.stack(before), units, bda)))
            present, units, before, units, bda = (self.tensor(value) for value in per_frame.values())
            images, matrices, *post = (
                self.tensor(value)[None] for value in (frame.images, intrinsics, *shared)
            )
            given = [images, present, units, matrices, before, units, *post, bda]
            how = dict(sequential=True, feat_prev=self.tensor(np.stack(views)))
        else:
            given = [self.tensor(value)[None] for value in inputs]
        meta = dict(self.meta_of(frame), box_type_3d=LiDARInstance3DBoxes)
        return dict(return_loss=False, points=None, img_metas=[[meta]], img_inputs=[given], **how)

    def count_border_points(self, poses: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray) -> None:
        rig = poses.tobytes() + intrinsics.tobytes()
        if rig not in self._at_borders:
            points = frustum_places(self.facts, poses, intrinsics, crop)
            self._at_borders[rig] = int(border_points(self.facts, points).sum())

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name != VIEW:
                head, task = name.rsplit('_', 1)
                tasks.setdefault(task, {})[head] = tensor
        return tuple([maps] for maps in tasks.values())


def sensor_poses(frame: Frame) -> np.ndarray:
    """Return camera to key ego (N, 4, 4) float64, by another product than the runtime."""
    return np.linalg.inv(np.asarray(frame.lidar2img, np.float64)) @ frame.intrinsics
