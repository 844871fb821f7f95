"""Requirements of Autoware's perception nodes on a folder: its files, the keys of the manifest, tensors.

Source: autowarefoundation/autoware_universe 5e12a711 (CenterPoint's manifest v4.1: 656cdab8; BEVFormer:
bevformer_node.cpp@0d02fce, bevformer_inference_engine.cpp@7e68106, its plug-ins@c1fe1b8; VAD:
vad_node.cpp@048de72e, vad_model.hpp@02fa6a08): names, types, sizes and computations of the nodes; facts, no
code.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mm2onnx_driving.folder_rules import node_cells
from mm2onnx_driving.plugin_bevdet import ALIGN, GATHER, POOL_FIRST, PREPROCESS
from mm2onnx_driving.plugin_kernels import ATTENTION, ROTATE
from mmdeploy_ext.base.errors import shortened
from mmdeploy_ext.base.violations import ERROR, WARNING


@dataclasses.dataclass(frozen=True)
class Value:
    """A parameter as a node declares it.

    Attributes:
        type: bool, int, str, or float (ROS 2 needs a point in it).
        length: entries of a list; 0 for one or more, None for a single value.
        low, high: limits, ends included.
        choices: allowed values; () for any.
        pattern: of a text.
        also: returns another broken expectation, or ''.
        since: the first node that declares it without a default; '': all do.
        is_optional: no node needs it in the file.
    """

    type: type
    length: int | None = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Any, ...] = ()
    pattern: str = ''
    also: Callable[[Any], str] = lambda value: ''
    since: str = ''
    is_optional: bool = False

    def problem(self, value: Any) -> tuple[str, str]:
        """Return the rule that a value breaks and the expected value, or '' and ''."""
        entries = value if isinstance(value, list) else [value]
        if isinstance(value, list) != (self.length is not None) or not entries:
            return 'value', 'a list' if self.length is not None else 'a single value'
        if self.length and len(entries) != self.length:
            return 'value', f'{self.length} entries'
        types = (int, float) if self.type is float else (self.type,)
        if any(type(entry) not in types for entry in entries):
            return 'value', dict(bool='true or false', int='whole numbers', str='texts').get(
                self.type.__name__, 'numbers'
            )
        for entry in entries:
            if self.choices and entry not in self.choices:
                return 'value', f'one of {", ".join(map(str, self.choices))}'
            if self.type in (int, float) and not self.low <= entry <= self.high:
                return 'value', f'{self.low:g} to {self.high:g}'
            if self.type is str and not re.fullmatch(self.pattern or '.+', entry):
                return 'value', f'a text like {self.pattern}' if self.pattern else 'a text'
        if expected := self.also(value):
            return 'value', expected
        if self.type is float and not all(type(entry) is float for entry in entries):
            return 'ros-type', 'a decimal point in every number (64.0, not 64); otherwise the node throws'
        return '', ''


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output that a node binds.

    Attributes:
        name: by which the node looks it up, or the customary name.
        axes: a word for each axis: a number, a key of the manifest, a name of `Node.sizes`, or '?' for any
            size; '+' marks a range of sizes for TensorRT. '*': any axes.
        types: element types that the node assumes.
        note: the effect of another type.
    """

    name: str
    axes: str
    types: tuple[str, ...] = ('FLOAT',)
    note: str = ''


@dataclasses.dataclass(frozen=True)
class GraphFile:
    """A graph that a node loads.

    Attributes:
        name: file name without `.onnx`.
        inputs, outputs: in the node's order.
        path_key: key of the manifest for the path; '' for a fixed name.
        has_boxes: whether its box convention is probed, see `probes.py`.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    path_key: str = ''
    has_boxes: bool = False


class Change(NamedTuple):
    """An attribute of a plug-in that newer nodes have.

    Attributes:
        since: the change of the node.
        with_it, without: what nodes do with a file that has the attribute, and with one that has not.
        is_wanted: whether files should have it.
    """

    since: str
    with_it: str
    without: str
    is_wanted: bool


class Wrong(NamedTuple):
    """A broken rule of several keys: last word of the key, text behind its name, rule, severity."""

    key: str
    text: str
    rule: str = 'value'
    severity: str = ERROR


@dataclasses.dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        manifest: file name of the parameters.
        patterns: patterns of files by which a folder is recognised.
        keys: parameter, with dots -> its value.
        variables: of the launch file -> their values for a folder; the node has no paths relative to it.
        settings: file that the node gets the path of by its launch file, and names its rules; '' for none.
        model_manifest: JSON file of the parameters `model_keys`, at `model_param_path`; '' for none.
        sizes: name -> function of values of the manifest, named by the last words of their keys.
        rules: functions like `sizes`, which yield `Wrong` values.
        classes: class names that the node knows; () for any.
        binds: 'name', 'index', or 'exactly': by name, and no other tensor or axis.
        is_fixed: every axis of a file has to be fixed.
        plugins: operator of the plug-in library -> required attributes.
        newer: the same -> attribute of newer nodes -> its change of them.
        plugin_domain: domain of these operators; None for any.
        remapper: key of its path, or its file name, or ''.
        handovers: (file, output, file, input): tensors that the node copies.
        exported: key of the manifest -> equal entries of an export's metadata.
    """

    name: str
    manifest: str
    patterns: tuple[str, ...]
    files: tuple[GraphFile, ...]
    keys: Mapping[str, Value]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: str = ''
    model_manifest: str = ''
    model_keys: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, Callable[..., int]] = dataclasses.field(default_factory=dict)
    rules: tuple[Callable[..., Iterator[Wrong]], ...] = ()
    classes: tuple[str, ...] = ()
    binds: str = 'name'
    is_fixed: bool = False
    plugins: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    newer: Mapping[str, Mapping[str, Change]] = dataclasses.field(default_factory=dict)
    plugin_domain: str | None = 'autoware'
    remapper: str = ''
    handovers: tuple[tuple[str, str, str, str], ...] = ()
    exported: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def graphs(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)


# ---- values that several nodes have

COUNT = Value(int, low=1)
FLAG, TEXT, NAMES = Value(bool), Value(str), Value(str, 0)
ONNX_PATH = Value(str, pattern=r'.*\.onnx')


def _is_box(value: list[float]) -> str:
    return '' if all(np.less(value[:3], value[3:])) else 'lower bounds below the upper ones'


def _is_interval(value: list[float]) -> str:
    return '' if value[0] < value[1] and value[2] >= 1e-3 else 'lower, upper above it, and a step in metres'


def _is_ascending(value: list[float]) -> str:
    is_right = value[0] > 0 and all(sooner < later for sooner, later in itertools.pairwise(value))
    return '' if is_right else 'ascending distances above 0'


CUBOID, INTERVAL = Value(float, 6, also=_is_box), Value(float, 3, also=_is_interval)
CELL = Value(float, 3, low=1e-3)


def _quotient(key: str, axis: str, low: float, high: float, step: float) -> Iterator[Wrong]:
    exact, cells = (high - low) / step, node_cells(low, high, step)
    if cells != round(exact):
        text = f"is {exact:g} cells of {step:g} m{axis}, but {cells} in the node's float32 division"
        yield Wrong(key, f'{text}, rounded down; change it or the step', 'grid')
    elif abs(exact - cells) > 1e-3:
        yield Wrong(key, f'is {exact:g} cells of {step:g} m{axis}, expected a whole number', 'grid', WARNING)


# ---- lidar_centerpoint

POINTS, CHANNELS = 32, 32
"""Points of a pillar and channels of its features in the node."""
POINT_WIDTH = {9: 4, 10: 4, 11: 5}
"""encoder_in_feature_size -> point_feature_size."""
REMAPPER = 'detection_class_remapper.param.yaml'
REMAPPER_LABELS = 8
"""Labels of the remapper: UNKNOWN to PEDESTRIAN."""


def _is_matrix(value: list[Any]) -> str:
    # label x label, row by row; 10 x 10 since #12732
    return '' if len(value) in (REMAPPER_LABELS**2, 100) else f'{REMAPPER_LABELS**2} or 100 entries'


REMAPPER_KEYS = {
    'allow_remapping_by_area_matrix': Value(int, 0, choices=(0, 1), also=_is_matrix),
    'min_area_matrix': Value(float, 0, also=_is_matrix),
    'max_area_matrix': Value(float, 0, also=_is_matrix),
}


def _one_for_each_class(class_names: list[str], yaw_norm_thresholds: list[float]) -> Iterator[Wrong]:
    if len(set(class_names)) < len(class_names):
        yield Wrong('class_names', f'has a duplicate name: {", ".join(class_names)}', 'class')
    if len(yaw_norm_thresholds) != len(class_names):
        count = len(yaw_norm_thresholds)
        text = f'has {count} numbers for {len(class_names)} classes; the node throws'
        yield Wrong('yaw_norm_thresholds', text)


def _point_size(encoder_in_feature_size: int, point_feature_size: int) -> Iterator[Wrong]:
    expected = POINT_WIDTH[encoder_in_feature_size]
    if point_feature_size != expected:
        text = (
            f'is {point_feature_size}, expected {expected} for encoder_in_feature_size '
            f'{encoder_in_feature_size}'
        )
        yield Wrong('point_feature_size', text)


def _pillars(point_cloud_range: list[float], voxel_size: list[float]) -> Iterator[Wrong]:
    for axis, name in enumerate('xy'):
        bounds = point_cloud_range[axis], point_cloud_range[axis + 3]
        yield from _quotient('point_cloud_range', f' along {name}', *bounds, voxel_size[axis])
    height = point_cloud_range[5] - point_cloud_range[2]
    if abs(voxel_size[2] - height) > 1e-4:
        text = (
            f'is {voxel_size[2]:g} m high, expected the height of the range, {height:g} m: a pillar is '
            'one voxel'
        )
        yield Wrong('voxel_size', text, 'grid', WARNING)


def _scores(
    class_names: list[str], distance_bin_upper_limits: list[float], min_confidence_scores: dict[str, Any]
) -> Iterator[Wrong]:
    bins = Value(float, len(distance_bin_upper_limits), low=0, high=1 - 1e-9)
    for name in class_names:
        scores = min_confidence_scores.get(name)
        rule, expected = bins.problem(scores)
        if rule:
            yield Wrong(
                f'min_confidence_scores.{name}',
                f'is {shortened(scores)}, expected {expected}, one per bin, from 0 to below 1',
                rule,
            )


class _ByClass(Value):
    def problem(self, value: Any) -> tuple[str, str]:
        return ('', '') if isinstance(value, dict) else ('value', 'a list of scores for each class')


M = 'model_params.'
CENTERPOINT = Node(
    name='lidar_centerpoint',
    manifest='ml_package.param.yaml',
    patterns=('ml_package.param.yaml', 'pts_voxel_encoder*.onnx', 'pts_backbone_neck_head*.onnx'),
    files=(
        GraphFile(
            'pts_voxel_encoder',
            (Tensor('input_features', f'max_voxel_size {POINTS} encoder_in_feature_size'),),
            (Tensor('pillar_features', f'max_voxel_size 1 {CHANNELS}'),),
            'encoder_onnx_path',
        ),
        GraphFile(
            'pts_backbone_neck_head',
            (Tensor('spatial_features', f'1 {CHANNELS} rows columns'),),
            (
                Tensor('heatmap', '1 classes cell_rows cell_columns'),
                Tensor('reg', '1 two cell_rows cell_columns'),
                Tensor('height', '1 one cell_rows cell_columns'),
                Tensor('dim', '1 three cell_rows cell_columns'),
                Tensor('rot', '1 two cell_rows cell_columns'),
                Tensor('vel', '1 two cell_rows cell_columns'),
            ),
            'head_onnx_path',
            has_boxes=True,
        ),
    ),
    keys={
        'version': Value(str, pattern=r'v?0*4\.0*[1-9][0-9]*'),
        'encoder_onnx_path': ONNX_PATH,
        'encoder_engine_path': TEXT,
        'head_onnx_path': ONNX_PATH,
        'head_engine_path': TEXT,
        'class_remapper_param_path': TEXT,
        'trt_precision': Value(str, choices=('fp32', 'fp16')),
        f'{M}class_names': NAMES,
        f'{M}has_twist': FLAG,
        f'{M}point_feature_size': Value(int, choices=(4, 5)),
        f'{M}has_variance': FLAG,
        f'{M}max_voxel_size': COUNT,
        f'{M}point_cloud_range': CUBOID,
        f'{M}voxel_size': CELL,
        f'{M}downsample_factor': COUNT,
        f'{M}encoder_in_feature_size': Value(int, choices=tuple(POINT_WIDTH)),
        f'{M}yaw_norm_thresholds': Value(float, 0, low=0, high=1),
        f'{M}detection_score_thresholds.distance_bin_upper_limits': Value(float, 0, also=_is_ascending),
        f'{M}detection_score_thresholds.min_confidence_scores': _ByClass(dict),
    },
    sizes=dict(
        classes=lambda class_names: len(class_names),
        rows=lambda point_cloud_range, voxel_size: node_cells(*point_cloud_range[1::3], voxel_size[1]),
        columns=lambda point_cloud_range, voxel_size: node_cells(*point_cloud_range[::3], voxel_size[0]),
        cell_rows=lambda rows, downsample_factor: rows // downsample_factor,
        cell_columns=lambda columns, downsample_factor: columns // downsample_factor,
        one=lambda has_variance: 1 + has_variance,
        two=lambda has_variance: 2 * (1 + has_variance),
        three=lambda has_variance: 3 * (1 + has_variance),
    ),
    rules=(_one_for_each_class, _point_size, _pillars, _scores),
    classes=('CAR', 'TRUCK', 'BUS', 'TRAILER', 'BICYCLE', 'MOTORBIKE', 'PEDESTRIAN'),
    binds='index',
    remapper='class_remapper_param_path',
    exported={
        f'{M}point_cloud_range': 'preprocess.point_cloud_range',
        f'{M}voxel_size': 'preprocess.voxel_size',
        f'{M}class_names': 'classes',
    },
)

# ---- camera_streampetr

EMBEDDED = (Tensor('pos_embed', '1 ? ?'), Tensor('cone', '1 ? 8'))
ROWS = dict(embedding='?', reference_point='3', timestamp='1', egopose='4 4', velo='2')
"""Field of the memory -> axes of each of its rows."""
STREAMPETR = Node(
    name='camera_streampetr',
    manifest='ml_package_camera_streampetr.param.yaml',
    patterns=('ml_package_camera_streampetr.param.yaml', 'simplify_*.onnx'),
    files=(
        GraphFile(
            'simplify_extract_img_feat',
            (Tensor('img', '1 rois_number 3 input_image_height input_image_width'),),
            (Tensor('img_feats', '*'),),
        ),
        GraphFile(
            'simplify_position_embedding',
            (
                Tensor('img_metas_pad', '3'),
                Tensor('intrinsics', '1 rois_number 4 4'),
                Tensor('img2lidar', '1 rois_number 4 4'),
            ),
            EMBEDDED,
        ),
        GraphFile(
            'simplify_pts_head_memory',
            (
                Tensor('x', '*'),
                *EMBEDDED,
                Tensor('data_ego_pose', '1 4 4'),
                Tensor('data_ego_pose_inv', '1 4 4'),
                *(Tensor(f'pre_memory_{field}', f'1 pre_memory_length {row}') for field, row in ROWS.items()),
            ),
            (
                Tensor('all_cls_scores', '1 classes num_proposals'),
                Tensor('all_bbox_preds', '1 10 num_proposals'),
                *(
                    Tensor(f'post_memory_{field}', f'1 post_memory_length {row}')
                    for field, row in ROWS.items()
                ),
            ),
        ),
    ),
    keys={
        f'{M}class_names': NAMES,
        f'{M}detection_range': CUBOID,
        f'{M}input_image_height': COUNT,
        f'{M}input_image_width': COUNT,
        f'{M}num_proposals': COUNT,
        f'{M}rois_number': COUNT,
        f'{M}pre_memory_length': COUNT,
        f'{M}post_memory_length': COUNT,
    },
    sizes=dict(classes=lambda class_names: len(class_names)),
    classes=('CAR', 'TRUCK', 'BUS', 'TRAILER', 'MOTORCYCLE', 'BICYCLE', 'PEDESTRIAN'),
    is_fixed=True,
    handovers=(
        ('simplify_extract_img_feat', 'img_feats', 'simplify_pts_head_memory', 'x'),
        ('simplify_position_embedding', 'pos_embed', 'simplify_pts_head_memory', 'pos_embed'),
        ('simplify_position_embedding', 'cone', 'simplify_pts_head_memory', 'cone'),
    ),
    exported={f'{M}class_names': 'classes'},
)

# ---- bevfusion


def _profile(voxels_num: list[int]) -> Iterator[Wrong]:
    if sorted(voxels_num) != voxels_num:
        yield Wrong(
            'voxels_num', f"is {voxels_num}, expected minimum, optimum and maximum for TensorRT's profile"
        )


def _voxels(point_cloud_range: list[float], voxel_size: list[float]) -> Iterator[Wrong]:
    for axis, name in enumerate('xyz'):
        bounds = point_cloud_range[axis], point_cloud_range[axis + 3]
        yield from _quotient('point_cloud_range', f' along {name}', *bounds, voxel_size[axis])


def _bounds(x_bound: list[float], y_bound: list[float], z_bound: list[float]) -> Iterator[Wrong]:
    for key, bound in dict(x_bound=x_bound, y_bound=y_bound, z_bound=z_bound).items():
        yield from _quotient(key, '', *bound)


def _depths(d_bound: list[float], num_depth_features: int) -> Iterator[Wrong]:
    bins = node_cells(*d_bound)
    if bins != num_depth_features:
        text = f"is {num_depth_features}; d_bound {d_bound} gives {bins} in the node's float32 division"
        yield Wrong('num_depth_features', text, 'grid')


VOXELS = (
    Tensor('voxels', '+? max_points_per_voxel width'),
    Tensor('num_points_per_voxel', '+?', ('INT32',)),
    Tensor('coors', '+? 3', ('INT32',)),
)
FEATURES = Tensor('image_feats', '+num_cameras image_feature_channel features_height features_width')
BOXES = (
    Tensor('bbox_pred', '10 num_proposals'),
    Tensor('score', 'num_proposals'),
    Tensor('label_pred', 'num_proposals', ('INT64',)),
)
BEVFUSION_LIDAR = Node(
    name='bevfusion',
    manifest='ml_package_bevfusion_lidar.param.yaml',
    patterns=('bevfusion_*.onnx', 'ml_package_bevfusion_*.param.yaml'),
    files=(GraphFile('bevfusion_lidar', VOXELS, BOXES),),
    keys={
        'class_names': NAMES,
        'voxels_num': Value(int, 3, low=1),
        'point_cloud_range': CUBOID,
        'voxel_size': CELL,
        'num_proposals': COUNT,
        'out_size_factor': COUNT,
        'max_points_per_voxel': COUNT,
        'use_intensity': FLAG,
        'd_bound': INTERVAL,
        'x_bound': INTERVAL,
        'y_bound': INTERVAL,
        'z_bound': INTERVAL,
        'num_cameras': COUNT,
        'raw_image_height': COUNT,
        'raw_image_width': COUNT,
        'img_aug_scale_x': Value(float, low=1e-3),
        'img_aug_scale_y': Value(float, low=1e-3),
        'roi_height': COUNT,
        'roi_width': COUNT,
        'features_height': COUNT,
        'features_width': COUNT,
        'num_depth_features': COUNT,
        'image_feature_channel': COUNT,
    },
    sizes=dict(width=lambda use_intensity: 4 + use_intensity),
    rules=(_profile, _voxels, _bounds, _depths),
    classes=STREAMPETR.classes,
    binds='exactly',
    plugins={
        'GetIndicePairsImplicitGemm': (
            *('algo', 'batch_size', 'dilation', 'is_train', 'ksize', 'out_padding', 'padding'),
            *('spatial_shape', 'stride', 'subm', 'transpose'),
        ),
        'ImplicitGemm': (
            *('act_alpha', 'act_beta', 'is_subm', 'is_train', 'output_add_scale', 'output_scale'),
        ),
        'QuickCumsumCuda': ('batch_size', 'dimension', 'height', 'width'),
    },
    newer={
        'GetIndicePairsImplicitGemm': {
            'do_sort': Change(
                'pull request 12631 (May 2026)',
                'the file fits nodes before and since it',
                'older nodes load the file, newer ones warn, and future ones will not load it; export it '
                'again',
                True,
            )
        },
        'ImplicitGemm': {
            'act_type': Change(
                'pull request 12658',
                'newer nodes load the file; older ones omit bias and activation, so their boxes are wrong',
                'the file fits nodes before and since it',
                False,
            )
        },
    },
    remapper=REMAPPER,
    exported=dict(
        point_cloud_range='preprocess.voxels.point_cloud_range',
        voxel_size='preprocess.voxels.voxel_size',
        class_names='classes',
    ),
)
BEVFUSION_CAMERAS = dataclasses.replace(
    BEVFUSION_LIDAR,
    manifest='ml_package_bevfusion_camera_lidar.param.yaml',
    files=(
        GraphFile(
            'bevfusion_camera_lidar',
            (
                *VOXELS,
                Tensor('points', '+? width'),
                FEATURES,
                Tensor('img_aug_matrix', '+num_cameras 4 4'),
                Tensor('lidar2image', '+num_cameras 4 4'),
                Tensor(
                    'geom_feats',
                    '+? 4',
                    ('INT32',),
                    'the node writes 32-bit integers, which are about 0 when read as floats: every camera '
                    'feature goes to cell 0',
                ),
                Tensor('kept', '+?', ('BOOL', 'UINT8'), 'the node writes one byte for each cell'),
                Tensor('ranks', '+?', ('INT64',)),
                Tensor('indices', '+?', ('INT64',)),
            ),
            BOXES,
        ),
        GraphFile(
            'bevfusion_image_backbone',
            (
                Tensor(
                    'imgs',
                    '+num_cameras 3 roi_height roi_width',
                    ('UINT8',),
                    'the graph normalises the bytes',
                ),
            ),
            (FEATURES,),
        ),
    ),
)

# ---- tensorrt_bevformer

LOWER_CASE = 'car', 'truck', 'bus', 'trailer', 'bicycle', 'motorcycle', 'pedestrian'
"""Class names of tensorrt_bevformer and tensorrt_bevdet."""
CAMERAS = 6
"""Cameras that the node subscribes to."""


def _labels(class_names: list[str], num_classes: int) -> Iterator[Wrong]:
    if len(class_names) != num_classes:
        yield Wrong('class_names', f'has {len(class_names)} names for {num_classes} classes')


def _side(pixels: int, scale: float, divisor: int) -> int:
    return -(-int(pixels * scale) // divisor) * divisor


BEVFORMER = Node(
    name='tensorrt_bevformer',
    manifest='bevformer.param.yaml',
    patterns=('bevformer.param.yaml', 'bevformer_node.onnx'),
    files=(
        GraphFile(
            'bevformer_node',
            (
                Tensor('image', f'1 {CAMERAS} 3 height width'),
                Tensor('prev_bev', 'cells 1 dim'),
                Tensor('use_prev_bev', '1'),
                Tensor('can_bus', '18'),
                Tensor('lidar2img', f'1 {CAMERAS} 4 4'),
            ),
            (
                Tensor('bev_embed', 'cells 1 dim'),
                Tensor('outputs_classes', 'nb_dec 1 num_query num_classes'),
                Tensor('outputs_coords', 'nb_dec 1 num_query 10'),
            ),
        ),
    ),
    keys={
        'data_params.CAM_NUM': Value(int, choices=(CAMERAS,)),
        'data_params.input_width': COUNT,
        'data_params.input_height': COUNT,
        'data_params.mean': Value(float, 3),
        'data_params.std': Value(float, 3, low=1e-6),
        'data_params.to_rgb': FLAG,
        'data_params.pad_divisor': COUNT,
        'data_params.scale_factor': Value(float, low=1e-3),
        f'{M}batch_size': Value(int, choices=(1,)),
        f'{M}bev_h': COUNT,
        f'{M}bev_w': COUNT,
        f'{M}nb_dec': COUNT,
        f'{M}dim': COUNT,
        f'{M}num_query': COUNT,
        f'{M}num_classes': COUNT,
        f'{M}code_size': Value(int, choices=(10,)),
        'post_process_params.score_thre': Value(float, low=0, high=1),
        'post_process_params.has_twist': FLAG,
        'post_process_params.class_names': NAMES,
        'post_process_params.pc_range': CUBOID,
        'post_process_params.post_center_range': CUBOID,
    },
    sizes=dict(
        cells=lambda bev_h, bev_w: bev_h * bev_w,
        height=lambda input_height, scale_factor, pad_divisor: _side(input_height, scale_factor, pad_divisor),
        width=lambda input_width, scale_factor, pad_divisor: _side(input_width, scale_factor, pad_divisor),
    ),
    rules=(_labels,),
    classes=(*LOWER_CASE, 'construction_vehicle'),
    is_fixed=True,
    plugins={
        f'{name}{layout}': ()
        for name in (ROTATE, ATTENTION, 'ModulatedDeformableConv2dTRT')
        for layout in ('', '2')  # of float16
    },
    plugin_domain=None,
    exported={
        'data_params.mean': 'preprocess.mean',
        'data_params.std': 'preprocess.std',
        'data_params.to_rgb': 'preprocess.to_rgb',
        'post_process_params.class_names': 'classes',
    },
)

# ---- tensorrt_bevdet

VIEW = '80 128 128'
"""Channels, rows and columns of the node's views: numbers of its TensorRT profile, as the other sizes."""
BEVDET_CAMERAS = (
    *('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
"""Names in the order of the node's topics."""


def _is_of_topics(cams: list[str]) -> str:
    is_right = sorted(cams) != sorted(BEVDET_CAMERAS) or cams == list(BEVDET_CAMERAS)
    return '' if is_right else f"the order of the node's topics: {', '.join(BEVDET_CAMERAS)}"


def _halves(precision: str) -> Iterator[Wrong]:
    if precision == 'fp16':
        text = 'is fp16, in which the library reads float16 transforms as float32; launch with '
        yield Wrong('precision', f'{text}precision:=fp32', 'precision', WARNING)


BEVDET = Node(
    name='tensorrt_bevdet',
    manifest='bevdet.param.yaml',
    patterns=('bevdet.param.yaml', 'bevdet_one*.onnx'),
    files=(
        GraphFile(
            'bevdet_one_lt_d',
            (
                Tensor('images', f'{CAMERAS} 3 900 400', ('INT32',), 'the node writes four bytes into each'),
                Tensor('mean', '3'),
                Tensor('std', '3'),
                Tensor('cam_params', f'1 {CAMERAS} 27'),
                *(Tensor(name, '+?', ('INT32',)) for name in ('ranks_depth', 'ranks_feat', 'ranks_bev')),
                *(Tensor(name, '+?', ('INT32',)) for name in ('interval_starts', 'interval_lengths')),
                Tensor('adj_feats', f'1 8 {VIEW}'),
                Tensor('transforms', '1 8 6'),
                Tensor('flag', '1 1', ('INT32',)),
            ),
            (
                Tensor('reg_0', '1 2 128 128'),
                Tensor('height_0', '1 1 128 128'),
                Tensor('dim_0', '1 3 128 128'),
                Tensor('rot_0', '1 2 128 128'),
                Tensor('vel_0', '1 2 128 128'),
                Tensor('heatmap_0', '1 ? 128 128'),
                Tensor('curr_bevfeat', f'1 {VIEW}'),
            ),
            'onnx_path',
        ),
    ),
    keys={
        'onnx_path': ONNX_PATH,
        'engine_path': TEXT,
        'model_config': Value(str, is_optional=True),
        'precision': Value(str, choices=('fp16', 'fp32'), is_optional=True),
        'debug_mode': Value(bool, since='04e1fee4'),
        'data_params.CAM_NUM': Value(int, choices=(CAMERAS,), is_optional=True),
        'data_params.camera_count': Value(int, choices=(CAMERAS,), since='04e1fee4'),
        'data_params.cams': Value(str, CAMERAS, also=_is_of_topics),
        'post_process_params.score_threshold': Value(float, low=0, high=1),
        'post_process_params.class_names': NAMES,
    },
    variables=dict(model_path='.', model_name='bevdet_one_lt_d'),
    settings='bevdet.yaml',
    rules=(_halves,),
    classes=LOWER_CASE,
    plugins={
        PREPROCESS: ('crop_h', 'crop_w', 'resize_radio'),
        POOL_FIRST: ('bev_h', 'bev_w', 'n'),
        ALIGN: (),
        GATHER: (),
    },
    plugin_domain=None,
    exported={'post_process_params.class_names': 'classes', 'data_params.cams': 'runtime.preprocess.cameras'},
)

# ---- tensorrt_vad

VAD_LAYERS = 3
"""Decoder layers in the node's shapes."""
QUERIES = f'{VAD_LAYERS} 1 prediction_num_queries'
MAP_QUERIES = f'{VAD_LAYERS} 1 map_num_queries'
FRAME = (
    Tensor('mlvl_feats.0', '1 num_cameras bev_feature_dim rows columns'),
    Tensor('img_metas.0[can_bus]', '1 vehicle_state_can_bus_dim'),
    Tensor('img_metas.0[lidar2img]', 'num_cameras 4 4'),
    Tensor('img_metas.0[shift]', '1 2'),
)
LAST_VIEW = Tensor('prev_bev', 'cells 1 bev_feature_dim')
FOUND = (
    Tensor('out.bev_embed', LAST_VIEW.axes),
    Tensor('out.ego_fut_preds', '1 planning_ego_commands planning_timesteps 2'),
    Tensor('out.all_traj_preds', f'{QUERIES} prediction_trajectory_modes numbers'),
    Tensor('out.all_traj_cls_scores', f'{QUERIES} prediction_trajectory_modes'),
    Tensor('out.all_bbox_preds', f'{QUERIES} prediction_bbox_pred_dim'),
    Tensor('out.all_cls_scores', f'{QUERIES} prediction_num_classes'),
    Tensor('out.map_all_cls_scores', f'{MAP_QUERIES} map_num_classes'),
    Tensor('out.map_all_pts_preds', f'{MAP_QUERIES} map_points_per_polyline 2'),
    Tensor('out.map_all_bbox_preds', f'{MAP_QUERIES} 4'),
)


def _one_for_each_camera(num_cameras: int, use_raw: list[bool]) -> Iterator[Wrong]:
    if len(use_raw) != num_cameras:
        yield Wrong('use_raw', f'has {len(use_raw)} entries for {num_cameras} cameras; the node throws')


def _thresholds(
    map_classes: list[str],
    object_classes: list[str],
    map_confidence_thresholds: list[float],
    object_confidence_thresholds: list[float],
) -> Iterator[Wrong]:
    for name, classes, found in (
        ('map_confidence_thresholds', map_classes, map_confidence_thresholds),
        ('object_confidence_thresholds', object_classes, object_confidence_thresholds),
    ):
        if len(classes) != len(found):
            yield Wrong(name, f'has {len(found)} numbers for {len(classes)} classes; the node throws')


def _one_word_for_each_class(class_mapping: list[str], object_classes: list[str]) -> Iterator[Wrong]:
    if len(class_mapping) != len(object_classes):
        text = f'has {len(class_mapping)} names for {len(object_classes)} classes of the model'
        yield Wrong('class_mapping', f'{text}; the node reads it by label')


def _net(file: str, **inputs: str) -> dict[str, Value]:
    paths = dict(onnx_path=ONNX_PATH, engine_path=TEXT, precision=Value(str, choices=('fp32', 'fp16')))
    keys = dict(paths, name=Value(str, choices=(file,)))
    keys |= {f'inputs.{key}': Value(str, choices=(value,)) for key, value in inputs.items()}
    return {f'{M}nets.{file}.{key}': value for key, value in keys.items()}


FEATURES_OF = dict(input_feature='mlvl_feats.0', net='backbone', name='out.0')
ARCHITECTURE = 'network_architecture.'
VAD = Node(
    name='tensorrt_vad',
    manifest='vad.param.yaml',
    patterns=('vad.param.yaml', 'vad.param.json', 'head_no_prev.onnx'),
    files=(
        GraphFile(
            'backbone',
            (
                Tensor(
                    'img',
                    'num_cameras 3 input_specs_target_image_height input_specs_target_image_width',
                ),
            ),
            (Tensor('out.0', 'num_cameras 1 bev_feature_dim rows columns'),),
            f'{M}nets.backbone.onnx_path',
        ),
        GraphFile('head_no_prev', FRAME, FOUND, f'{M}nets.head_no_prev.onnx_path'),
        GraphFile('head', (*FRAME, LAST_VIEW), FOUND, f'{M}nets.head.onnx_path'),
    ),
    keys={
        'node_params.num_cameras': COUNT,
        'node_params.use_raw': Value(bool, 0),
        'sync_params.front_camera_id': Value(int, low=0),
        'sync_params.sync_tolerance_ms': Value(float, low=0),
        'interface_params.trajectory_timestep': Value(float, low=1e-3),
        'interface_params.detection_range': CUBOID,
        'interface_params.map_colors': Value(float, 0),
        'interface_params.input_image_width': COUNT,
        'interface_params.input_image_height': COUNT,
        'model_param_path': Value(str, pattern=r'.*\.json'),
        f'{M}default_command': Value(int, choices=(0, 1, 2)),
        f'{M}map_confidence_thresholds': Value(float, 0, low=0, high=1),
        f'{M}object_confidence_thresholds': Value(float, 0, low=0, high=1),
        f'{M}plugins_path': TEXT,
        'class_mapping': NAMES,
        **_net('backbone'),
        **_net('head', **FEATURES_OF),
        **_net('head_no_prev', **FEATURES_OF),
    },
    variables=dict(model_path='.'),
    model_manifest='vad.param.json',
    model_keys={
        'major_version': Value(int, choices=(0,)),
        'minor_version': Value(int, low=0),
        'model_name': TEXT,
        'image_normalization.mean': Value(float, 3),
        'image_normalization.std': Value(float, 3, low=1e-6),
        'input_specs.target_image_width': COUNT,
        'input_specs.target_image_height': COUNT,
        'class_definitions.map_classes': NAMES,
        'class_definitions.object_classes': NAMES,
        f'{ARCHITECTURE}bev.height': COUNT,
        f'{ARCHITECTURE}bev.width': COUNT,
        f'{ARCHITECTURE}bev.feature_dim': COUNT,
        f'{ARCHITECTURE}bev.downsample_factor': COUNT,
        f'{ARCHITECTURE}transformer.num_decoder_layers': Value(int, choices=(VAD_LAYERS,)),
        f'{ARCHITECTURE}prediction.num_queries': COUNT,
        f'{ARCHITECTURE}prediction.num_classes': COUNT,
        f'{ARCHITECTURE}prediction.bbox_pred_dim': COUNT,
        f'{ARCHITECTURE}prediction.trajectory_modes': COUNT,
        f'{ARCHITECTURE}prediction.timesteps': COUNT,
        f'{ARCHITECTURE}planning.ego_commands': COUNT,
        f'{ARCHITECTURE}planning.timesteps': COUNT,
        f'{ARCHITECTURE}map.num_queries': COUNT,
        f'{ARCHITECTURE}map.num_classes': COUNT,
        f'{ARCHITECTURE}map.points_per_polyline': COUNT,
        f'{ARCHITECTURE}vehicle_state.can_bus_dim': COUNT,
    },
    sizes=dict(
        cells=lambda bev_height, bev_width: bev_height * bev_width,
        rows=lambda target_image_height, downsample_factor: target_image_height // downsample_factor,
        columns=lambda target_image_width, downsample_factor: target_image_width // downsample_factor,
        numbers=lambda prediction_timesteps: 2 * prediction_timesteps,
    ),
    rules=(_one_for_each_camera, _thresholds, _one_word_for_each_class),
    classes=('CAR', 'TRUCK', 'BUS', 'BICYCLE', 'MOTORCYCLE', 'PEDESTRIAN'),
    is_fixed=True,
    plugins=dict.fromkeys(('RotatePlugin', 'MultiscaleDeformableAttnPlugin_TRT', 'SelectAndPadPlugin'), ()),
    plugin_domain=None,
    handovers=(
        ('backbone', 'out.0', 'head', 'mlvl_feats.0'),
        ('head_no_prev', 'out.bev_embed', 'head', 'prev_bev'),
    ),
    exported={
        'image_normalization.mean': 'preprocess.mean',
        'image_normalization.std': 'preprocess.std',
        'class_definitions.object_classes': 'classes',
        'class_mapping': 'classes',
    },
)

NODES = (CENTERPOINT, STREAMPETR, BEVFUSION_CAMERAS, BEVFUSION_LIDAR, BEVFORMER, BEVDET, VAD)
"""A folder of bevfusion with a camera graph is a camera model."""
