"""The family of BEVDet and BEVDet4D: the configs that it claims and refuses, and the models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mm2onnx_driving.bevdet.runtime import FORM, VIEW, BevDetFacts
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.lift import (
    LiftFamily,
    LiftFrame,
    LiftNetwork,
    LiftReference,
    frame_inputs,
    lift_facts,
    lift_graphs,
    sensor_poses,
    view_axes,
)
from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.common.runtime.center_boxes import VALUES, head_settings, per_task
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# BEVDet's graph of plain operators: geometry, pictures, the view, views of frames before, and the head.
#
# Glossary: N cameras, H, W network input in pixels, A adjacent frames, D depth bins, h, w feature map, C
# channels, Y, X rows and columns of the view.


MEANINGS = dict(
    reg=('position in the cell, x, y', 'cell'),
    height=('z of the centre', 'm'),
    dim=('logarithms of length, width, height', ''),
    rot=('sine and cosine of the yaw', ''),
    vel=('velocity x, y', 'm/s'),
    heatmap=('classes', 'logit'),
)
VIEWS = ColumnGroup(rtol=1e-5, atol=5e-4)
HEADS_ATOL = {False: 5e-4, True: 2e-3}
"""Whether frames before count -> tolerance of the head's maps. Source: tolerances of the reference data."""


def adjacent_of(model: nn.Module) -> int:
    return getattr(model, 'num_frame', 1) - 1


def head_names(model: nn.Module) -> list[str]:
    return [name for name in (*VALUES, 'heatmap') if name != 'vel' or model.pts_bbox_head.with_velocity]


class BevDetHeads(LiftNetwork):
    """Further parts that all contracts have."""

    def processed(self, view: Tensor) -> Tensor:
        return self.model.pre_process_net(view)[0] if getattr(self.model, 'pre_process', False) else view

    def heads(self, view: Tensor) -> tuple[Tensor, ...]:
        tasks = self.model.pts_bbox_head([self.encoded(view)])
        return tuple(task[0][name] for task in tasks for name in head_names(self.model))


class BevDetFrame(LiftFrame, BevDetHeads):
    """One frame: pictures, poses and views of frames before to the present view and the head's maps."""

    def forward(
        self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor, *before: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the view (1, C, Y, X) if there are frames `before`, and the maps of the head.

        The first inputs are those of `view_of`; `before` are `prev_bev` (A, C, Y, X), views as they were;
        `prev_exists` (A,) 1, or 0, where the present view stands for it; `prev_warp` (A, 2, 3), see
        `runtime.warp`.
        """
        view = self.processed(self.view_of(img, sensor2keyego, intrinsics))
        if not before:
            return self.heads(view)
        return view, *self.heads(torch.cat([view, self.warped(view, *before)], 1))

    def warped(self, view: Tensor, prev_bev: Tensor, exists: Tensor, warp: Tensor) -> Tensor:
        rows, columns = view.shape[2:]
        x = torch.arange(columns, dtype=torch.float32)[None, :, None]
        y = torch.arange(rows, dtype=torch.float32)[:, None, None]
        grid = x * warp[:, None, None, :, 0] + y * warp[:, None, None, :, 1] + warp[:, None, None, :, 2]
        present = exists[:, None, None, None].to(view.dtype)
        views = prev_bev * present + view * (1 - present)
        return sampled(views, grid.to(view.dtype)).flatten(0, 1)[None]


def sampled(views: Tensor, grid: Tensor) -> Tensor:
    """Return views (A, C, Y, X) at the places (A, Y, X, 2), x and y in -1..1; 0 from outside."""
    return functional.grid_sample(views, grid, align_corners=True)


def output_specs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return the contracts of the head's maps, by the names of `CenterBoxFacts.output_names`."""
    atol, axes = HEADS_ATOL[adjacent_of(model) > 0], view_axes(model)[1:]
    outputs = []
    for task, count in enumerate(model.pts_bbox_head.num_classes):
        for name in head_names(model):
            (meaning, unit), channels = MEANINGS[name], VALUES.get(name, int(count))
            groups = (ColumnGroup(unit=unit, rtol=0.0, atol=atol),)
            outputs.append(
                TensorSpec(f'{name}_{task}', 'float32', (1, channels, *axes), meaning, unit, groups)
            )
    return tuple(outputs)


def spec(model: nn.Module) -> GraphSpec:
    inputs, adjacent, axes = frame_inputs(model), adjacent_of(model), view_axes(model)
    outputs, state = output_specs(model), ()
    if adjacent:
        exists = '0 if there is no such frame; the current view replaces it'
        source = 'cell (column, row, 1) to its position in that view, -1..1'
        inputs += [
            TensorSpec(
                'prev_bev', 'float32', (adjacent, *axes), 'views of the previous frames, newest first'
            ),
            TensorSpec('prev_exists', 'float32', (adjacent,), exists, single=True),
            TensorSpec('prev_warp', 'float32', (adjacent, 2, 3), source, single=True),
        ]
        view = TensorSpec(VIEW, 'float32', (1, *axes), 'view of the current frame', groups=(VIEWS,))
        outputs = (view, *outputs)
    return GraphSpec('bevdet/portable', tuple(inputs), outputs, state)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    return lift_graphs(model, options, FORM, BevDetFrame(model), spec(model))


def facts_of(model: nn.Module) -> BevDetFacts:
    return BevDetFacts(**box_facts(model.pts_bbox_head), **lift_facts(model), adjacent=adjacent_of(model))


def box_facts(head: nn.Module) -> dict[str, Any]:
    """Return the fields of `CenterBoxFacts`; BEVDet scales boxes before NMS and has no range after it."""
    factors = per_task(head.test_cfg.get('nms_rescale_factor', 1.0), len(head.num_classes))
    scales = [per_task(factor, int(count)) for factor, count in zip(factors, head.num_classes, strict=True)]
    return head_settings(head) | dict(
        post_center_limit_range=(), nms_scale=tuple(tuple(map(float, scale)) for scale in scales)
    )


# BEVDet and BEVDet4D in PyTorch as a stepper: the detector's own `forward`, its past views kept here.
#
# Views of frames before are kept as they were when their frame was the present one, as upstream's sequential
# path and all deployments keep them; the published evaluation computes them again with the present poses.


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


NMS_TYPES = ('rotate', 'circle')
PER_TASK = ('nms_type', 'nms_thr', 'nms_rescale_factor')
"""Test settings that may be lists of one value per task."""
EXACT = ColumnGroup(rtol=0.0, atol=1e-6)


class BevDetFamily(LiftFamily):
    name = 'bevdet'
    detectors, heads = ('BEVDet', 'BEVDet4D', 'BEVDepth4D'), ('CenterHead',)
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'prepare_bev_feat', 'shift_feature', 'gen_grid',
        'img_view_transformer.forward', 'get_bboxes', 'get_task_detections', 'decode',
    )  # fmt: skip
    files = (FORM,)
    reference, graphs, facts = staticmethod(BevDetReference), staticmethod(graphs), staticmethod(facts_of)

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for suppressions that are not exported."""
        test, tasks = test_cfg_of(cfg).get('pts') or {}, len(cfg.model.pts_bbox_head.tasks)
        for key in PER_TASK:
            values = test.get(key)
            if isinstance(values, list | tuple) and len(values) < tasks:
                raise ConfigError(
                    f'{cfg.filename}: {test_cfg_key(cfg)}.pts.{key}={list(values)}; expected one value, or '
                    f'one for each of the {tasks} tasks'
                )
        kinds = test.get('nms_type')
        kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds]
        if not set(kinds) <= {*NMS_TYPES}:
            raise ConfigError(
                f'{cfg.filename}: {test_cfg_key(cfg)}.pts.nms_type={kinds}; expected '
                f'{" or ".join(NMS_TYPES)}, or a list of them'
            )

    def num_classes(self, model: nn.Module) -> int:
        return sum(model.pts_bbox_head.num_classes)

    def memory_spec(self, facts: BevDetFacts) -> MemorySpec:
        if not facts.adjacent:
            return MemorySpec(needed=facts.output_names)
        tensors = dict(views=VIEWS, exists=EXACT, camera2ego=EXACT)
        return MemorySpec(tensors=tensors, outputs=dict(views=VIEW), needed=facts.output_names)
