"""What autoware_bevfusion would reject or read wrongly in a folder of its files.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_bevfusion (bevfusion_trt.cpp,
precomputed_features.cpp, ros_utils.cpp) and autoware_tensorrt_plugins: facts, no code.

Glossary: V voxels, A points of a voxel, F values of a point, P points, N cameras, C channels, D depth bins,
M cells that are kept, Q proposals, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.graph_files import read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    CELL_METRES,
    MODEL_FOLDER,
    absent_files,
    bound,
    class_rules,
    cuboid,
    engine_rules,
    grid_rules,
    key_rules,
    node_cells,
    path_rules,
    read_parameters,
    remapper_rules,
    right,
)
from mmdeploy_ext.consumers.autoware.tensors import Bound, by_name, graph_rules, has_errors
from mmdeploy_ext.consumers.autoware.trial import LOAD, trial_rules
from mmdeploy_ext.contract.schema import exactly, items, number
from mmdeploy_ext.contract.values import COUNT, FLAG, NAME, PIXELS, POSITIVE
from mmdeploy_ext.core.printable import shortened
from mmdeploy_ext.core.violations import WARNING, Violation
from mmdeploy_ext.runtime.contract_files import ends_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LIDAR, FUSION, BACKBONE = 'bevfusion_lidar', 'bevfusion_camera_lidar', 'bevfusion_image_backbone'
REMAPPER = 'detection_class_remapper.param.yaml'
PATTERNS = ('bevfusion_*.onnx', 'ml_package_bevfusion_*.param.yaml')
READ_KEYS = ('onnx_path', 'image_backbone_onnx_path')
ENGINE_KEYS = ('engine_path', 'image_backbone_engine_path')
PLUGINS_KEY = 'plugins_path'
"""Keys of the node's own parameters, which a manifest may have, too."""
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'MOTORCYCLE', 'BICYCLE', 'PEDESTRIAN')
BOUNDS, SCALES = ('d_bound', 'x_bound', 'y_bound', 'z_bound'), ('img_aug_scale_x', 'img_aug_scale_y')
KEYS = dict(
    class_names=items(NAME, 1),
    voxels_num=exactly(3, number(1, 10_000_000, whole=True)),
    point_cloud_range=cuboid,
    voxel_size=exactly(3, CELL_METRES),
    **dict.fromkeys(('num_proposals', 'out_size_factor', 'max_points_per_voxel'), COUNT),
    use_intensity=FLAG,
    **dict.fromkeys(BOUNDS, bound),
    num_cameras=COUNT,
    **dict.fromkeys(('raw_image_height', 'raw_image_width'), PIXELS),
    **dict.fromkeys(SCALES, POSITIVE),
    **dict.fromkeys(('roi_height', 'roi_width', 'features_height', 'features_width'), PIXELS),
    **dict.fromkeys(('num_depth_features', 'image_feature_channel'), COUNT),
)
REALS = ('point_cloud_range', 'voxel_size', *BOUNDS, *SCALES)
PLUGINS = {
    'GetIndicePairsImplicitGemm': (
        *('algo', 'batch_size', 'dilation', 'is_train', 'ksize', 'out_padding', 'padding', 'spatial_shape'),
        *('stride', 'subm', 'transpose'),
    ),
    'ImplicitGemm': ('act_alpha', 'act_beta', 'is_subm', 'is_train', 'output_add_scale', 'output_scale'),
    'QuickCumsumCuda': ('batch_size', 'dimension', 'height', 'width'),
}
"""Operator of the plug-in library -> attributes that it counts on."""
TRAP = 'the node writes 32-bit integers, of which a float reads about 0: every camera feature lands in cell 0'
LOST = 'which the node declares; it counts and names all tensors'


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read."""
    fusion = any((folder / f'{name}.onnx').is_file() for name in (FUSION, BACKBONE))
    main = FUSION if fusion else LIDAR
    manifest = f'ml_package_{main}.param.yaml'
    names = (f'{main}.onnx', *([f'{BACKBONE}.onnx'] if fusion else []), manifest, REMAPPER)
    there = {name: folder / name for name in names if (folder / name).is_file()}
    found = absent_files(names, there)
    values: dict[str, Any] = {}
    if manifest in there:
        values, own = read_parameters(there[manifest])
        found += own or [*_parameters(manifest, values), *_paths(manifest, folder, values)]
    if REMAPPER in there:
        found += remapper_rules(there[REMAPPER])
    known, tried = right(values, KEYS, found), []
    for name, bounds in ((main, main_bounds), (BACKBONE, backbone_bounds)):
        file = f'{name}.onnx'
        if file in there:
            graph, wrong = read_graph(there[file])
            found += wrong
            if graph is not None:
                inputs, outputs = bounds(known, fusion)
                found += by_name(file, ends_of(graph), inputs, outputs, exact=True, why=LOST)
                found += graph_rules(file, graph, PLUGINS if name == main else {})
                tried.append((there[file], graph, LOAD))
    if not has_errors(found):
        found += trial_rules(tried)
    return found, there


def _parameters(file: str, values: Mapping[str, Any]) -> list[Violation]:
    found = list(key_rules(file, values, KEYS, REALS))
    known = right(values, KEYS, found)
    if 'class_names' in known:
        found += class_rules(file, known['class_names'], CLASSES, 'class_names')
    if 'voxels_num' in known and sorted(known['voxels_num']) != known['voxels_num']:
        said = f'voxels_num is {known["voxels_num"]}, expected least, usual, most: the profile of TensorRT'
        found.append(Violation(file, 'voxels_num', 'value', said))
    if {'point_cloud_range', 'voxel_size'} <= set(known):
        found += grid_rules(file, known['point_cloud_range'], known['voxel_size'], '')
    found += _cells(file, known)
    modes = [f'image_backbone_{name}' for name in ('onnx_path', 'engine_path', 'trt_precision')]
    given = [name for name in modes if values.get(name)]
    lacking = [name for name in modes if name not in given]
    if given and lacking:
        said = f'{", ".join(given)} without {", ".join(lacking)}: the node throws'
        found.append(Violation(file, given[0], 'value', said))
    return found


def _paths(file: str, folder: Path, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield paths of the node that a manifest may have, and that lead out of the folder or to nothing."""
    for key in (*READ_KEYS, *ENGINE_KEYS, PLUGINS_KEY):
        if not isinstance(values.get(key, ''), str):
            said = f'{key} is {shortened(values[key])}, expected a text; the node throws'
            yield Violation(file, key, 'value', said)
    yield from path_rules(file, folder, values, READ_KEYS, prefix=MODEL_FOLDER)[1]
    yield from engine_rules(file, folder, values, ENGINE_KEYS, MODEL_FOLDER)
    if PLUGINS_KEY in values:
        said = (
            f'{PLUGINS_KEY} is {shortened(values[PLUGINS_KEY])}: the node loads that library and runs its '
            f"code; leave it to the node's own parameters"
        )
        yield Violation(file, PLUGINS_KEY, 'path', said, WARNING)


def _cells(file: str, known: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield counts that are not those of the node's float32 quotients."""
    if {'d_bound', 'num_depth_features'} <= set(known):
        low, high, step = known['d_bound']
        bins = node_cells(low, high, step)
        if bins != known['num_depth_features']:
            said = (
                f'num_depth_features is {known["num_depth_features"]}, and d_bound {known["d_bound"]} gives '
                f'{bins} bins by the float32 quotient of the node'
            )
            yield Violation(file, 'num_depth_features', 'grid', said)
    for key in [key for key in BOUNDS[1:] if key in known]:
        low, high, step = known[key]
        exact, cells = (high - low) / step, node_cells(low, high, step)
        if round(exact) != cells:
            said = f'{key} is {exact:g} cells, and {cells} by the float32 quotient of the node'
            yield Violation(file, key, 'grid', said)


def main_bounds(known: Mapping[str, Any], fusion: bool) -> tuple[list[Bound], list[Bound]]:
    """Return inputs and outputs of the main graph; sizes that the manifest does not say rightly are None."""
    width = 4 + known['use_intensity'] if 'use_intensity' in known else None
    taken = [
        Bound('voxels', (None, known.get('max_points_per_voxel'), width)),
        Bound('num_points_per_voxel', (None,), ('INT32',)),
        Bound('coors', (None, 3), ('INT32',)),
    ]
    if fusion:
        cameras = known.get('num_cameras')
        taken += [
            Bound('points', (None, width)),
            _features(known),
            Bound('img_aug_matrix', (cameras, 4, 4)),
            Bound('lidar2image', (cameras, 4, 4)),
            Bound('geom_feats', (None, 4), ('INT32',), TRAP),
            Bound('kept', (None,), ('BOOL', 'UINT8'), 'the node writes one byte for each cell'),
            Bound('ranks', (None,), ('INT64',)),
            Bound('indices', (None,), ('INT64',)),
        ]
    queries = known.get('num_proposals')
    return taken, [
        Bound('bbox_pred', (10, queries)),
        Bound('score', (queries,)),
        Bound('label_pred', (queries,), ('INT64',)),
    ]


def backbone_bounds(known: Mapping[str, Any], fusion: bool) -> tuple[list[Bound], list[Bound]]:
    """Return inputs and outputs of the file of pictures; see `main_bounds`."""
    size = known.get('num_cameras'), 3, known.get('roi_height'), known.get('roi_width')
    return [Bound('imgs', size, ('UINT8',), 'the graph normalises the bytes')], [_features(known)]


def _features(known: Mapping[str, Any]) -> Bound:
    keys = ('num_cameras', 'image_feature_channel', 'features_height', 'features_width')
    return Bound('image_feats', tuple(known.get(key) for key in keys))
