"""Graphs for BEVDet's own TensorRT converter, and for bevdet-tensorrt-cpp and its copy bevdet_vendor.

Source of names, shapes and order: HuangJunJie2017/BEVDet f71858d, tools/convert_bevdet_to_TRT.py;
LCH1238/BEVDet branch export d92b784, tools/export (facts, no code).

Glossary: N cameras, H, W picture as taken, A frames before, C channels, Y, X rows and columns of the view.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import BEVDET, BEVDET_CAMERAS
from mm2onnx_driving.bevdet.family import (
    VIEWS,
    BevDetHeads,
    BevDetReference,
    adjacent_of,
    output_specs,
)
from mm2onnx_driving.bevdet.plugins import (
    FILE,
    PRESENT,
    grey_levels,
    normalised,
    picture_places,
)
from mm2onnx_driving.bevdet.runtime import FORM, VIEW
from mm2onnx_driving.common.camera import with_examples
from mm2onnx_driving.common.lift import view_axes
from mm2onnx_driving.folder_rules import node_cells
from mm2onnx_driving.layers.lift_splat import VECTOR
from mm2onnx_driving.plugin_bevdet import ALIGN, GATHER, POOL_FIRST, PREPROCESS
from mm2onnx_driving.plugin_pooling import REPLACED, TABLES, PooledNetwork, pooled, pooled_graph
from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.families.common.runtime.center_boxes import per_task
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.runtime.frames import Frame, StepResult
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register

# ---- bevdet-tensorrt-cpp (branch one): one file and its settings


SETTINGS = 'bevdet.yaml'
"""File of the program's settings."""
TRANSFORM = 6
"""Numbers of a slot's motion."""
NOTES = (
    'the program fills all slots with the first view of a scene and moves them from then on; so does '
    'PyTorch in this proof (the published test uses the current frame for frames before the scene)',
    "PyTorch's images are rounded to whole grey levels, as in the program; the program resizes with "
    'nearest pixels, the training with antialiased bicubic: this proof does not cover that difference',
    'the program builds its tables once for fixed camera poses; in this proof they follow the calibration '
    'of each frame. The program keeps one class per cell; this proof decodes boxes as the model does',
)
"""What a verdict says about the program."""


def _prepared(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    crop_h: int,
    crop_w: int,
    resize_radio: float,
    rows: int,
    columns: int,
) -> Tensor:
    words, scales = images.double()[..., None], torch.tensor([2.0**0, 2.0**8, 2.0**16, 2.0**24]).double()
    pixels = torch.floor(words / scales) - 256 * torch.floor(words / (256 * scales))
    pixels = pixels.flatten(3).float()
    for axis, size, crop in ((2, rows, crop_h), (3, columns, crop_w)):
        places = torch.floor((torch.arange(size) + crop) / resize_radio + 0.5).long()
        # the example of a trace is smaller than a picture
        pixels = pixels.index_select(axis, places.clamp(max=pixels.shape[axis] - 1))
    return (pixels - mean[:, None, None]) / std[:, None, None]


def _pooled_first(
    depth: Tensor,
    features: Tensor,
    ranks_depth: Tensor,
    ranks_feat: Tensor,
    ranks_bev: Tensor,
    interval_starts: Tensor,
    interval_lengths: Tensor,
    bev_h: int,
    bev_w: int,
    n: int,
) -> Tensor:
    tables = ranks_depth, ranks_feat, ranks_bev, interval_starts, interval_lengths
    return pooled(depth, features.permute(0, 2, 3, 1), *tables, bev_h, bev_w).permute(0, 3, 1, 2)


def _aligned(adj_feats: Tensor, transforms: Tensor) -> Tensor:
    rows, columns = (int(size) for size in adj_feats.shape[3:])
    x = torch.arange(columns, dtype=torch.float32)[None, :, None]
    y = torch.arange(rows, dtype=torch.float32)[:, None, None]
    matrices = transforms[0].unflatten(1, (2, 3))[:, None, None]
    cells = (x * matrices[..., 0] + y * matrices[..., 1] + matrices[..., 2]).flatten(1, 2)
    first, views = cells.floor(), adj_feats[0].flatten(2)
    moved = torch.zeros_like(views)
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):  # GridSample is of opset 16
        place = first + torch.tensor(corner)
        column, row = place.unbind(-1)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        share = (1 - (cells - place).abs()).prod(-1) * inside
        index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        moved = moved + views.gather(2, index.long()[:, None].expand_as(views)) * share[:, None]
    return moved.view_as(adj_feats)


def _gathered(adj: Tensor, curr: Tensor, flag: Tensor) -> Tensor:
    present = curr[:, None]
    before = torch.where(flag[:, :, None, None, None] != 0, adj, present.expand_as(adj))
    return torch.cat([present, before], 1).flatten(1, 2)


def _pool_example() -> tuple[Tensor, ...]:
    entries = torch.arange(3, dtype=torch.int32)
    return torch.rand(1, 2, 2, 3), torch.rand(1, 4, 2, 3), *[entries] * 4, torch.ones_like(entries)


SIZES = ('rows', 'columns')
"""Attributes of operators that the plug-ins compute themselves."""


def _operator(name: str, function: Any, inputs: dict[str, str], example: Any) -> Operator:
    without = *inputs, *SIZES, 'return'
    attributes = {argument: argument for argument in function.__annotations__ if argument not in without}
    plugin = Plugin(name, attributes=attributes, domain='bevdet')
    return register(
        Operator(
            f'BevDet{name}',
            function,
            inputs=inputs,
            outputs=('out',),
            example=example,
            traceable=function,
            plugin=plugin,
        )
    )


prepare = _operator(
    PREPROCESS,
    _prepared,
    dict(images='N 3 H W', mean='3', std='3'),
    lambda: (torch.zeros(2, 3, 8, 2, dtype=torch.int32), torch.rand(3), torch.rand(3) + 1),
)
pool_first = _operator(
    POOL_FIRST,
    _pooled_first,
    dict(depth='N D H W', features='N C H W', **{name: axis for name, (axis, _) in TABLES.items()}),
    _pool_example,
)
align = _operator(
    ALIGN,
    _aligned,
    dict(adj_feats='1 A C Y X', transforms='1 A 6'),
    lambda: (torch.rand(1, 2, 3, 4, 5), torch.rand(1, 2, 6)),
)
gather = _operator(
    GATHER,
    _gathered,
    dict(adj='1 A C Y X', curr='1 C Y X', flag='1 1'),
    lambda: (torch.rand(1, 2, 3, 4, 5), torch.rand(1, 3, 4, 5), torch.ones(1, 1, dtype=torch.int32)),
)


class CppFrame(BevDetHeads):
    """A frame with the four plug-ins."""

    def forward(
        self, images: Tensor, mean: Tensor, std: Tensor, cam_params: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the maps of the head and the present view; the inputs are as `spec` says."""
        *tables, adj_feats, transforms, flag = more
        rule, (_, rows, columns) = self.model.rule, view_axes(self.model)
        pictures = prepare(images, mean, std, *rule.crop, float(rule.scale), *rule.size)
        lifted = self.lift(pictures, cam_params)
        view = self.processed(pool_first(*lifted, *tables, rows, columns, len(images)))
        joint = gather(align(adj_feats, transforms), view, flag)
        return *self.heads(joint), view


def spec(model: nn.Module) -> GraphSpec:
    """Return the contract; the program binds inputs by their order, outputs by their names."""
    rule, adjacent, axes = model.rule, adjacent_of(model), view_axes(model)
    height, width = rule.source
    inputs = (
        TensorSpec(
            'images',
            'int32',
            (rule.num_cameras, 3, height, width // 4),
            'B, G, R planes, 4 bytes per element',
        ),
        TensorSpec('mean', 'float32', (3,), 'of the planes'),
        TensorSpec('std', 'float32', (3,), 'of the planes'),
        TensorSpec('cam_params', 'float32', (1, rule.num_cameras, VECTOR), 'of each camera'),
        *(TensorSpec(name, 'int32', (axis,), meaning) for name, (axis, meaning) in TABLES.items()),
        TensorSpec(
            'adj_feats',
            'float32',
            (1, adjacent, *axes),
            'previous views, newest first, without motion compensation',
        ),
        TensorSpec('transforms', 'float32', (1, adjacent, TRANSFORM), 'source cell of each cell, row by row'),
        TensorSpec('flag', 'int32', (1, 1), '0: the current view replaces all previous views'),
    )
    view = TensorSpec(PRESENT, 'float32', (1, *axes), 'view of the current frame', groups=(VIEWS,))
    return GraphSpec('bevdet/bevdet-cpp', inputs, (*output_specs(model), view))


class CppReference(BevDetReference):
    """PyTorch with the program's slots at the begin of a scene, and whole grey levels."""

    def step(self, frame: Frame) -> StepResult:
        rule, is_first = self.model.rule, self.is_first(frame)
        images = normalised(grey_levels(frame.images, rule), rule)
        result = super().step(dataclasses.replace(frame, images=images))
        if is_first:
            self._views = self._views * self.adjacent
        return result


class CppFiles(Contract):
    """The one graph with the plug-ins, and the program's settings."""

    settings, replaces, notes = PUBLISHED, REPLACED, NOTES

    @property
    def files(self) -> tuple[str, ...]:
        return (FILE,)

    def check(self, cfg: Any) -> None:
        kinds = cfg.model.type, cfg.model.img_view_transformer.type
        if kinds != ('BEVDepth4D', 'LSSViewTransformerBEVDepth'):
            raise ConfigError(
                f'{cfg.filename}: model.type={kinds[0]!r}, model.img_view_transformer.type={kinds[1]!r}: '
                'bevdet-tensorrt-cpp supports only BEVDepth4D with LSSViewTransformerBEVDepth; use '
                'these, or --contract portable'
            )
        rule = self.family.preprocess_rule(cfg)
        lengths = tuple(len(places) for places in picture_places(rule))
        test, head = test_cfg_of(cfg).pts, cfg.model.pts_bbox_head
        limits = per_task(test.nms_thr, len(head.tasks))
        if 'circle' in per_task(test.nms_type, len(head.tasks)) or len(set(limits)) > 1:
            raise ConfigError(
                f'{cfg.filename}: {test_cfg_key(cfg)}.pts: nms_type={test.nms_type}, '
                f'nms_thr={test.nms_thr}: the program compares overlaps with one threshold for all tasks; '
                'expected rotate and one number'
            )
        if rule.source[1] % 4 or rule.scale > 1 or min(rule.crop) < 0 or lengths != rule.size:
            raise ConfigError(
                f'{cfg.filename}: data_config: src_size={rule.source}, input_size={rule.size}: the '
                'plug-in Preprocess needs an input inside of the camera image, with a width that is a '
                'multiple of 4'
            )
        grid = cfg.model.img_view_transformer.grid_config
        if list(grid['x']) != list(grid['y']):
            raise ConfigError(
                f'{cfg.filename}: grid_config: the program decodes only square views; use equal x and y'
            )
        counts = {axis: round((high - low) / step) for axis, (low, high, step) in grid.items()}
        counts['depth'] = len(torch.arange(*grid['depth'], dtype=torch.float32))
        for axis, count in counts.items():
            low, _, step = grid[axis]
            steps = node_cells(*interval(low, step, count))
            if steps != count:
                raise ConfigError(
                    f'{cfg.filename}: grid_config.{axis}={list(grid[axis])}: the model has {count} steps, '
                    f"but the program's float32 division gives {steps}; change the step or the range"
                )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        (graph,) = with_examples(model, [(FILE, CppFrame(model), spec(model))])
        stages = [dataclasses.replace(stage, operators='plugin') for stage in graph.stages]
        return [dataclasses.replace(graph, make=lambda: stages)]

    def reference(self, model: nn.Module) -> CppReference:
        return CppReference(model, self.notes)

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        view = spec(model).tensor(PRESENT)
        return dataclasses.replace(view, name=VIEW), *output_specs(model)

    def companions(self, model: nn.Module) -> Mapping[str, str]:
        import yaml

        return {SETTINGS: yaml.safe_dump(settings_of(model, self.family.facts(model)), sort_keys=False)}


def interval(low: float, step: float, count: int) -> list[float]:
    """Return lower and upper bound and step in metres, of numbers of float32."""
    low, step = (float(str(np.float32(value))) for value in (low, step))
    return [low, round(low + step * count, 6), step]


def settings_of(model: nn.Module, facts: Any) -> dict[str, Any]:
    """Return the program's settings, which it reads from a YAML file."""
    rule, frustum = model.rule, facts.depths
    axes = zip('xyz', facts.grid_low, facts.grid_step, facts.grid_count, strict=True)
    grid = {axis: interval(low, size, count) for axis, low, size, count in axes}
    names, tasks = list(model.CLASSES), []
    for count in facts.num_classes:
        tasks.append(dict(num_class=count, class_names=names[:count]))
        names = names[count:]
    return dict(
        mean=list(rule.mean),
        std=list(rule.std),
        use_depth=True,
        use_adj=True,
        adj_num=facts.adjacent,
        transform_size=TRANSFORM,
        cam_params_size=VECTOR,
        sampling='nearest',
        data_config=dict(
            Ncams=rule.num_cameras,
            cams=list(rule.cameras),
            src_size=list(rule.source),
            input_size=list(rule.size),
            crop=list(rule.crop),
        ),
        grid_config=dict(grid, depth=interval(frustum[0], frustum[1] - frustum[0], len(frustum))),
        model=dict(
            bevpool_channels=int(model.img_view_transformer.out_channels),
            down_sample=rule.size[0] // len(facts.rows),
            common_head=dict(names=['reg', 'height', 'dim', 'rot', 'vel'], channels=[2, 1, 3, 2, 2]),
            tasks=tasks,
        ),
        test_cfg=dict(
            max_per_img=facts.max_num,
            post_max_size=facts.post_max_size,
            score_threshold=facts.score_threshold,
            nms_thr=[facts.nms_thr],
            nms_rescale_factor=[list(row) for row in facts.nms_scale],
        ),
    )


# ---- BEVDet's converter


class PooledFrame(PooledNetwork, BevDetHeads):
    """A frame with the plug-in's pooling."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the head."""
        return self.heads(self.view_of(img, *tables))


class PoolFiles(Contract):
    settings, replaces = PUBLISHED, REPLACED

    def check(self, cfg: Any) -> None:
        if cfg.model.type != 'BEVDet':
            raise ConfigError(
                f"{cfg.filename}: model.type={cfg.model.type!r}: BEVDet's converter supports one frame "
                'and no depth network; expected BEVDet, or use --contract portable'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        outputs = [
            dataclasses.replace(tensor, name=f'output_{index}')
            for index, tensor in enumerate(output_specs(model))
        ]
        return [pooled_graph(model, FORM, PooledFrame(model), 'bevdet/trt-plugin', outputs)]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return output_specs(model)


# BEVDet4D as Autoware's tensorrt_bevdet loads it: the file of bevdet_vendor, and the node's parameters.
#
# Source: autoware_universe, autoware_tensorrt_bevdet (node at 04e1fee4 and a164223f, parameters at 563bc062;
# facts, no code).


SCORE_THRESHOLD = 0.2
"""Score that a box has to reach, the node's default; tune it there."""
NO_POSE = (
    'AUTOWARE PASSES NO EGO POSE: the node sets neither scene_token nor ego2global, so previous views are '
    'not moved with the car, start as zeros, and no scene ever starts; this proof passes poses and scenes '
    'and does not cover the node without them'
)


LAUNCH = (
    'ros2 launch autoware_tensorrt_bevdet tensorrt_bevdet.launch.xml model_path:={place} '
    f'model_config:={{place}}/{SETTINGS} param_file:={{place}}/{BEVDET.manifest} precision:=fp32'
)
"""Command that gives the node a folder; the launch file's own precision is fp16."""


class BevDetFiles(CppFiles):
    """The one graph, the program's settings, and the node's parameters."""

    node, used_by = BEVDET, f'{AutowareContract.used_by}   # then {LAUNCH}'
    notes = (NO_POSE, *NOTES)

    def check(self, cfg: Any) -> None:
        super().check(cfg)
        cameras = self.family.preprocess_rule(cfg).cameras
        is_other_order = sorted(cameras) == sorted(BEVDET_CAMERAS) and cameras != BEVDET_CAMERAS
        if len(cameras) != len(BEVDET_CAMERAS) or is_other_order:
            raise ConfigError(
                f'{cfg.filename}: --contract autoware: the cameras are {", ".join(cameras)}; expected the '
                f'order of the topics of the node, {", ".join(BEVDET_CAMERAS)}'
            )

    def companions(self, model: nn.Module) -> Mapping[str, str]:
        rule = model.rule
        parameters = dict(  # keys of the nodes before and since 04e1fee4; the launch file gives model_config
            onnx_path='$(var model_path)/$(var model_name).onnx',
            engine_path='$(var model_path)/$(var model_name).engine',
            precision='fp32',
            debug=False,
            debug_mode=False,
            data_params=dict(
                CAM_NUM=rule.num_cameras, camera_count=rule.num_cameras, cams=list(rule.cameras)
            ),
            post_process_params=dict(
                score_threshold=SCORE_THRESHOLD, class_names=published(BEVDET.classes, model.CLASSES)
            ),
        )
        return {**super().companions(model), **companion_texts(BEVDET, parameters)}
