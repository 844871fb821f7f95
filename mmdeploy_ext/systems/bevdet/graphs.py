"""BEVDet's graph of plain operators: geometry, pictures, the view, views of frames before, and the head.

Glossary: N cameras, H, W network input in pixels, A adjacent frames, D depth bins, h, w feature map, C
channels, Y, X rows and columns of the view.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.exporting.ops.cells import sum_by_tables
from mmdeploy_ext.families.common.camera_graphs import camera_graphs
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.families.common.runtime.center_boxes import VALUES
from mmdeploy_ext.graph.passes.resize_conv import convolve_before_resize
from mmdeploy_ext.systems.bevdet.facts import BevDetFacts
from mmdeploy_ext.systems.bevdet.model.detector import only_map
from mmdeploy_ext.systems.bevdet.model.view_transformer import camera_vectors, cells_of, frustum_points
from mmdeploy_ext.systems.bevdet.runtime import FORM, VIEW

MEANINGS = dict(
    reg=('place in the cell, x, y', 'cell'),
    height=('z of the middle', 'm'),
    dim=('logarithms of length, width, height', ''),
    rot=('sine and cosine of the yaw', ''),
    vel=('velocity x, y', 'm/s'),
    heatmap=('classes', 'logit'),
)
VIEWS = ColumnGroup(rtol=1e-5, atol=5e-4)
HEADS_ATOL = {False: 5e-4, True: 2e-3}
"""Whether frames before count -> tolerance of the head's maps. Source: tolerances of the reference data."""


def knows_camera(model: nn.Module) -> bool:
    return not isinstance(model.img_view_transformer.depth_net, nn.Conv2d)


def adjacent_of(model: nn.Module) -> int:
    return getattr(model, 'num_frame', 1) - 1


class Network(OfModel):
    """The parts of a detector that all contracts have."""

    def lift(self, images: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return depth (N, D, h, w) and features (N, C, h, w) of pictures, and camera vectors (N, 27)."""
        model, transformer = self.model, self.model.img_view_transformer
        maps = only_map(model.img_neck(model.img_backbone(images)))
        joint = transformer.depth_net(maps, *([] if vectors is None else [vectors]))
        last = transformer.D + transformer.out_channels
        return joint[:, : transformer.D].softmax(1), joint[:, transformer.D : last]

    def processed(self, view: Tensor) -> Tensor:
        return self.model.pre_process_net(view)[0] if getattr(self.model, 'pre_process', False) else view

    def heads(self, view: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        encoded = only_map(model.img_bev_encoder_neck(model.img_bev_encoder_backbone(view)))
        tasks = model.pts_bbox_head([encoded])
        return tuple(task[0][name] for task in tasks for name in head_names(model))


def head_names(model: nn.Module) -> list[str]:
    return [name for name in (*VALUES, 'heatmap') if name != 'vel' or model.pts_bbox_head.with_velocity]


class BevDetFrame(Network):
    """One frame: pictures, poses and views of frames before to the present view and the head's maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        matrix = torch.from_numpy(model.rule.crop_matrix())
        self.post_rot, self.post_tran = (
            torch.diag(torch.tensor([*matrix.diag()[:2], 1.0])),
            matrix[:, 2].clone(),
        )
        self.post_tran[2] = 0.0

    def forward(
        self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor, *before: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the view (1, C, Y, X) if there are frames `before`, and the maps of the head.

        Args:
            img: (N, 3, H, W), normalised.
            sensor2keyego: (N, 4, 4), camera to key ego.
            intrinsics: (N, 3, 3), camera to picture as it was taken.
            before: `prev_bev` (A, C, Y, X), views as they were; `prev_exists` (A,) 1, or 0, where the present
                view stands for it; `prev_warp` (A, 2, 3), see `runtime.warp`.
        """
        count = len(img)
        matrices = intrinsics, self.post_rot.expand(count, -1, -1), self.post_tran.expand(count, -1)
        vectors = camera_vectors(sensor2keyego, *matrices) if knows_camera(self.model) else None
        lifted = self.lift(img, vectors)
        view = self.processed(self.pool(*lifted, sensor2keyego, *matrices))
        if not before:
            return self.heads(view)
        return view, *self.heads(torch.cat([view, self.warped(view, *before)], 1))

    def pool(self, depth: Tensor, features: Tensor, *matrices: Tensor) -> Tensor:
        """Return the view (1, C, Y, X), by gathers alone."""
        transformer = self.model.img_view_transformer
        points = frustum_points(*matrices, transformer.frustum)
        columns, rows, levels = (int(size) for size in transformer.grid_size)
        low, step = transformer.grid_lower_bound, transformer.grid_interval
        cells = cells_of(points, low, step, (columns, rows, levels))
        first, second, third, slots = self.model.cell_tables(cells.flatten())
        per_camera, pixels = depth[0].numel(), depth[0, 0].numel()
        numbers = (first - 1).clamp(min=0)
        factors = functional.pad(depth.flatten(), (1, 0))[first]
        rows_of = numbers // per_camera * pixels + numbers % pixels
        values = features.permute(0, 2, 3, 1).flatten(0, 2)[rows_of]
        sums = (factors[:, None] @ values)[:, 0]
        return sum_by_tables(sums, (second, third), slots).T.unflatten(1, (rows, columns))[None]

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


def view_axes(model: nn.Module) -> tuple[int, int, int]:
    columns, rows, _ = (int(size) for size in model.img_view_transformer.grid_size)
    return int(model.img_view_transformer.out_channels), rows, columns


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
    """Return the contract; geometry is computed in float32 and float64 in a graph of float16, too."""
    (cameras, height, width), adjacent = model.input_sizes, adjacent_of(model)
    poses, axes = 'camera to key ego, m', view_axes(model)
    inputs = [
        TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images, B, G, R'),
        TensorSpec('sensor2keyego', 'float32', (cameras, 4, 4), poses, single=True),
        TensorSpec('intrinsics', 'float32', (cameras, 3, 3), 'camera to picture as taken', single=True),
    ]
    outputs, state = output_specs(model), ()
    if adjacent:
        exists = '0 where there is no such frame: the present view stands for it'
        source = 'cell (column, row, 1) to its source in that view, -1..1'
        inputs += [
            TensorSpec('prev_bev', 'float32', (adjacent, *axes), 'views of frames before, newest first'),
            TensorSpec('prev_exists', 'float32', (adjacent,), exists, single=True),
            TensorSpec('prev_warp', 'float32', (adjacent, 2, 3), source, single=True),
        ]
        view = TensorSpec(VIEW, 'float32', (1, *axes), 'view of this frame', groups=(VIEWS,))
        outputs = (view, *outputs)
    return GraphSpec('bevdet/portable', tuple(inputs), outputs, state)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    (graph,) = camera_graphs(model, options, [(FORM, BevDetFrame(model), spec(model))])
    if options.precision != 'fp32':
        return [graph]
    stages = [dataclasses.replace(stage, passes=(convolve_before_resize,)) for stage in graph.stages]
    return [dataclasses.replace(graph, make=lambda: stages)]


def facts_of(model: nn.Module) -> BevDetFacts:
    transformer, frustum = model.img_view_transformer, model.img_view_transformer.frustum
    return BevDetFacts(
        **box_facts(model),
        adjacent=adjacent_of(model),
        grid_low=tuple(transformer.grid_lower_bound.tolist()),
        grid_step=tuple(transformer.grid_interval.tolist()),
        grid_count=tuple(int(size) for size in transformer.grid_size),
        depths=tuple(frustum[:, 0, 0, 2].tolist()),
        columns=tuple(frustum[0, 0, :, 0].tolist()),
        rows=tuple(frustum[0, :, 0, 1].tolist()),
    )


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
