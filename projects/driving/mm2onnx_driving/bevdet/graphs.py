"""BEVDet's graph of plain operators: geometry, pictures, the view, views of frames before, and the head.

Glossary: N cameras, H, W network input in pixels, A adjacent frames, D depth bins, h, w feature map, C
channels, Y, X rows and columns of the view.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm2onnx_driving.bevdet.runtime import FORM, VIEW, BevDetFacts
from mm2onnx_driving.common.lift_graphs import (
    LiftFrame,
    LiftNetwork,
    frame_inputs,
    lift_facts,
    lift_graphs,
    view_axes,
)
from mmdeploy_ext.families.common.runtime.center_boxes import VALUES
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

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
    return BevDetFacts(**box_facts(model), **lift_facts(model), adjacent=adjacent_of(model))


def box_facts(model: nn.Module) -> dict[str, Any]:
    """Return the fields of `CenterBoxFacts`."""
    head = model.pts_bbox_head
    coder, test, tasks = head.bbox_coder, head.test_cfg, len(head.num_classes)
    kinds = [str(kind) for kind in as_list(test['nms_type'], tasks)]
    limits = [float(limit) for limit in as_list(test.get('nms_thr') or 0.0, tasks)]
    scales = []
    for factors, count in zip(
        as_list(test.get('nms_rescale_factor', 1.0), tasks), head.num_classes, strict=True
    ):
        scales.append(as_list(factors, int(count)))
    return dict(
        num_classes=[int(count) for count in head.num_classes],
        voxel_size=[float(size) for size in coder.voxel_size[:2]],
        pc_origin=[float(value) for value in coder.pc_range[:2]],
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=[float(value) for value in coder.post_center_range],
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=kinds[0] if len(set(kinds)) == 1 else kinds,
        nms_thr=limits[0] if len(set(limits)) == 1 else limits,
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=[float(radius) for radius in test.get('min_radius') or ()],
        post_center_limit_range=(),
        nms_scale=tuple(tuple(map(float, factors)) for factors in scales),
    )


def as_list(setting: Any, count: int) -> list[Any]:
    return list(setting)[:count] if isinstance(setting, list | tuple) else [setting] * count
