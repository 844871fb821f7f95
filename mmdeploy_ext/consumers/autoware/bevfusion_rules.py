"""What autoware_bevfusion would reject or read wrongly in a folder of its files.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_bevfusion (bevfusion_trt.cpp,
precomputed_features.cpp, ros_utils.cpp) and autoware_tensorrt_plugins: facts, no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.file_rules import Bound, bind_by_name, operator_rules, read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    CELL_METRES,
    MODEL_FOLDER,
    REMAPPER,
    WHOLE,
    class_rules,
    cuboid,
    engine_rules,
    export_rules,
    grid_rules,
    interval,
    key_rules,
    missing_files,
    node_cells,
    path_rules,
    read_parameters,
    remapper_rules,
    valid_values,
)
from mmdeploy_ext.consumers.autoware.trial import LOAD, trial_rules
from mmdeploy_ext.consumers.graph_tensors import graph_tensors
from mmdeploy_ext.contract.schema import COUNT, FLAG, NAME, PIXELS, POSITIVE, exactly, items, number
from mmdeploy_ext.core.errors import shortened
from mmdeploy_ext.core.violations import WARNING, Violation, errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LIDAR, FUSION, BACKBONE = 'bevfusion_lidar', 'bevfusion_camera_lidar', 'bevfusion_image_backbone'
"""Names of the graphs: of LiDAR alone; of cameras and LiDAR; of the images, which goes with the latter."""
PATTERNS = ('bevfusion_*.onnx', 'ml_package_bevfusion_*.param.yaml')
"""Patterns of files by which a folder of this node is recognised."""
# the keys of the next three are of the node's own parameters; a manifest may have them, too
READ_KEYS = ('onnx_path', 'image_backbone_onnx_path')
"""Keys whose values are paths of files that the node reads."""
ENGINE_KEYS = ('engine_path', 'image_backbone_engine_path')
"""Keys whose values are paths of engines of TensorRT that the node writes."""
PLUGINS_KEY = 'plugins_path'
"""Key whose value is the path of the library with the plug-ins."""
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'MOTORCYCLE', 'BICYCLE', 'PEDESTRIAN')
"""Class names that the node knows."""
BOUNDS, SCALES = ('d_bound', 'x_bound', 'y_bound', 'z_bound'), ('img_aug_scale_x', 'img_aug_scale_y')
"""Keys of ranges of the frustum (lower and upper bound, step, metres), and of factors of a picture's size."""
KEYS = dict(
    class_names=items(NAME, 1),
    voxels_num=exactly(3, number(1, 10_000_000, integer=True)),
    point_cloud_range=cuboid,
    voxel_size=exactly(3, CELL_METRES),
    **dict.fromkeys(('num_proposals', 'out_size_factor', 'max_points_per_voxel'), COUNT),
    use_intensity=FLAG,
    **dict.fromkeys(BOUNDS, interval),
    num_cameras=COUNT,
    **dict.fromkeys(('raw_image_height', 'raw_image_width'), PIXELS),
    **dict.fromkeys(SCALES, POSITIVE),
    **dict.fromkeys(('roi_height', 'roi_width', 'features_height', 'features_width'), PIXELS),
    **dict.fromkeys(('num_depth_features', 'image_feature_channel'), COUNT),
)
"""Key of the model -> check of its value; without cameras the node reads all of them, too.

`voxels_num` is the least, usual and largest number of voxels, `raw_image_*` the size in pixels of a camera's
picture, `roi_*` that of the part which the graph takes, `features_*` the cells of its features.
"""
REALS = ('point_cloud_range', 'voxel_size', *BOUNDS, *SCALES)
"""Keys that the node declares as floating point, see `key_rules`."""
FIRST = (0,)
"""`Bound.open_axes` of the inputs: the file has to leave this axis open, as the node gives a range of sizes.

It is that of voxels, points, cameras or cells.
"""
PLUGINS = {
    'GetIndicePairsImplicitGemm': [
        'algo',
        'batch_size',
        'dilation',
        'is_train',
        'ksize',
        'out_padding',
        'padding',
        'spatial_shape',
        'stride',
        'subm',
        'transpose',
    ],
    'ImplicitGemm': ['act_alpha', 'act_beta', 'is_subm', 'is_train', 'output_add_scale', 'output_scale'],
    'QuickCumsumCuda': ['batch_size', 'dimension', 'height', 'width'],
}
"""Operator of the plug-in library -> attributes that it counts on."""


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of those of its files that are there.

    Files of cameras and LiDAR are looked at if there is a graph of them, or their manifest and no graph.
    Without an error so far the graphs without plug-ins are run in ONNX Runtime, see `trial_rules`. What is
    wrong with a file is a violation; nothing is raised for it. ModelFileError: PyYAML is not installed.
    """
    graphs_there = [name for name in (FUSION, BACKBONE, LIDAR) if (folder / f'{name}.onnx').is_file()]
    fusion = graphs_there[0] != LIDAR if graphs_there else (folder / _manifest_of(FUSION)).is_file()
    main = FUSION if fusion else LIDAR
    manifest = _manifest_of(main)
    names = [f'{main}.onnx', manifest, REMAPPER]
    if fusion:
        names.insert(1, f'{BACKBONE}.onnx')
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    violations = missing_files(names, paths)
    if fusion:
        violations += _unread_rules(folder)
    values: dict[str, Any] = {}
    if manifest in paths:
        values, unreadable = read_parameters(paths[manifest])
        violations += unreadable or [*_manifest_rules(manifest, values), *_paths(manifest, folder, values)]
    if REMAPPER in paths:
        violations += remapper_rules(paths[REMAPPER])
    valid, graphs = valid_values(values, KEYS, violations), []
    for name, bounds in ((main, _main_bounds(valid, fusion)), (BACKBONE, _backbone_bounds(valid))):
        file = f'{name}.onnx'
        if file not in paths:
            continue
        graph, unreadable = read_graph(paths[file])
        violations += unreadable
        if graph is not None:
            consequence = 'which the node declares; it counts and names all tensors'
            tensors = graph_tensors(graph)
            violations += bind_by_name(file, tensors, *bounds, exact=True, consequence=consequence)
            violations += operator_rules(file, graph, PLUGINS if name == main else {})
            graphs.append((paths[file], graph, LOAD))
    models = {path.name: graph for path, graph, _ in graphs}
    violations += export_rules(manifest, models, valid, CLASSES, ('preprocess', 'voxels'))
    if not errors(violations):
        violations += trial_rules(graphs)
    return violations, paths


def _manifest_of(graph: str) -> str:
    return f'ml_package_{graph}.param.yaml'


def _unread_rules(folder: Path) -> Iterator[Violation]:
    """Yield the first file of LiDAR alone in a folder of cameras and LiDAR."""
    for file in (f'{LIDAR}.onnx', _manifest_of(LIDAR)):
        if (folder / file).is_file():
            message = f'{file} is beside the files of cameras and LiDAR, which alone are looked at'
            advice = '; put all files of LiDAR alone into a folder of their own'
            yield Violation(file, '', 'unread', message + advice, WARNING)
            return


def _manifest_rules(file: str, values: Mapping[str, Any]) -> list[Violation]:
    violations = list(key_rules(file, values, KEYS, REALS))
    valid = valid_values(values, KEYS, violations)
    if 'class_names' in valid:
        violations += class_rules(file, valid['class_names'], CLASSES, 'class_names')
    if 'voxels_num' in valid and sorted(valid['voxels_num']) != valid['voxels_num']:
        message = f'voxels_num is {valid["voxels_num"]}, expected least, usual, most: the profile of TensorRT'
        violations.append(Violation(file, 'voxels_num', 'value', message))
    if {'point_cloud_range', 'voxel_size'} <= set(valid):
        violations += grid_rules(file, valid['point_cloud_range'], valid['voxel_size'], '')
    violations += _cell_rules(file, valid)
    keys = [f'image_backbone_{name}' for name in ('onnx_path', 'engine_path', 'trt_precision')]
    present = [key for key in keys if values.get(key)]
    missing = [key for key in keys if key not in present]
    if present and missing:
        message = f'{", ".join(present)} without {", ".join(missing)}: the node throws'
        violations.append(Violation(file, present[0], 'value', message))
    return violations


def _cell_rules(file: str, valid: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield counts that are not those of the node's float32 quotients, and ranges of no whole number."""
    if {'d_bound', 'num_depth_features'} <= set(valid):
        bins = node_cells(*valid['d_bound'])
        if bins != valid['num_depth_features']:
            message = (
                f'num_depth_features is {valid["num_depth_features"]}, and d_bound {valid["d_bound"]} gives '
                f'{bins} bins by the float32 quotient of the node'
            )
            yield Violation(file, 'num_depth_features', 'grid', message)
    for key in [key for key in BOUNDS[1:] if key in valid]:
        low, high, step = valid[key]
        exact, cells = (high - low) / step, node_cells(low, high, step)
        message = f'{key} is {exact:g} cells'
        if round(exact) != cells:
            message += f', and {cells} by the float32 quotient of the node'
            yield Violation(file, key, 'grid', message)
        elif abs(exact - cells) > WHOLE:
            yield Violation(file, key, 'grid', f'{message}, no whole number', WARNING)


def _paths(file: str, folder: Path, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield paths of the node that a manifest may have, and that lead out of the folder or to nothing."""
    for key in (*READ_KEYS, *ENGINE_KEYS, PLUGINS_KEY):
        if not isinstance(values.get(key, ''), str):
            message = f'{key} is {shortened(values[key])}, expected a text; the node throws'
            yield Violation(file, key, 'value', message)
    yield from path_rules(file, folder, values, READ_KEYS, folder_text=MODEL_FOLDER)[1]
    yield from engine_rules(file, folder, values, ENGINE_KEYS, MODEL_FOLDER)
    if PLUGINS_KEY in values:
        message = (
            f'{PLUGINS_KEY} is {shortened(values[PLUGINS_KEY])}: the node loads that library and runs its '
            f"code; leave it to the node's own parameters"
        )
        yield Violation(file, PLUGINS_KEY, 'path', message, WARNING)


def _main_bounds(valid: Mapping[str, Any], fusion: bool) -> tuple[list[Bound], list[Bound]]:
    """Return the inputs and the outputs of the main graph as the node binds them.

    `valid` are the valid values of the manifest; a size without one is None. `fusion`: it has cameras, too.
    """
    width = 4 + valid['use_intensity'] if 'use_intensity' in valid else None
    inputs = [
        Bound('voxels', (None, valid.get('max_points_per_voxel'), width), open_axes=FIRST),
        Bound('num_points_per_voxel', (None,), ('INT32',), open_axes=FIRST),
        Bound('coors', (None, 3), ('INT32',), open_axes=FIRST),
    ]
    if fusion:
        cameras = valid.get('num_cameras')
        int32_only = (
            'the node writes 32-bit integers, whose bits are about 0 as a float: every camera feature lands '
            'in cell 0'
        )
        inputs += [
            Bound('points', (None, width), open_axes=FIRST),
            _image_features(valid),
            Bound('img_aug_matrix', (cameras, 4, 4), open_axes=FIRST),
            Bound('lidar2image', (cameras, 4, 4), open_axes=FIRST),
            Bound('geom_feats', (None, 4), ('INT32',), int32_only, FIRST),
            Bound('kept', (None,), ('BOOL', 'UINT8'), 'the node writes one byte for each cell', FIRST),
            Bound('ranks', (None,), ('INT64',), open_axes=FIRST),
            Bound('indices', (None,), ('INT64',), open_axes=FIRST),
        ]
    queries = valid.get('num_proposals')
    return inputs, [
        Bound('bbox_pred', (10, queries)),
        Bound('score', (queries,)),
        Bound('label_pred', (queries,), ('INT64',)),
    ]


def _backbone_bounds(valid: Mapping[str, Any]) -> tuple[list[Bound], list[Bound]]:
    """Return inputs and outputs of the graph of the images; see `_main_bounds`."""
    shape = valid.get('num_cameras'), 3, valid.get('roi_height'), valid.get('roi_width')
    pictures = Bound('imgs', shape, ('UINT8',), 'the graph normalises the bytes', FIRST)
    return [pictures], [_image_features(valid)]


def _image_features(valid: Mapping[str, Any]) -> Bound:
    keys = ('num_cameras', 'image_feature_channel', 'features_height', 'features_width')
    return Bound('image_feats', tuple(valid.get(key) for key in keys), open_axes=FIRST)
