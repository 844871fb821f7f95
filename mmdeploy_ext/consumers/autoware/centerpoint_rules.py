"""What autoware_lidar_centerpoint would reject or read wrongly in a folder of its manifest v4.1.

Source: autowarefoundation/autoware_universe 656cdab8 (manifest v4.1, its schema and test), 5e12a711
(centerpoint_trt.cpp, centerpoint_config.hpp, ros_utils.cpp): facts, no code.

Glossary: V pillars, K classes, H, W grid, F values of a decorated point.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.graph_files import read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    CELL_METRES,
    NOT_REAL,
    are_reals,
    ascending,
    class_rules,
    cuboid,
    engine_rules,
    grid_rules,
    key_rules,
    model_params,
    node_cells,
    path_rules,
    read_parameters,
    remapper_rules,
    right,
)
from mmdeploy_ext.consumers.autoware.tensors import Bound, by_index, graph_rules, has_errors
from mmdeploy_ext.consumers.autoware.trial import CONVENTION, LOAD, trial_rules
from mmdeploy_ext.contract.schema import exactly, items, number, one_of, text
from mmdeploy_ext.contract.values import COUNT, FLAG, FRACTION, NAME
from mmdeploy_ext.core.printable import shortened
from mmdeploy_ext.core.violations import WARNING, Violation
from mmdeploy_ext.runtime.contract_files import ends_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mmdeploy_ext.contract.schema import Check
    from mmdeploy_ext.runtime.contract_files import Shape

MANIFEST = 'ml_package.param.yaml'
ENCODER, HEAD = 'pts_voxel_encoder', 'pts_backbone_neck_head'
REMAPPER = 'detection_class_remapper.param.yaml'
PATTERNS = (f'{ENCODER}*.onnx', f'{HEAD}*.onnx')
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'BICYCLE', 'MOTORBIKE', 'PEDESTRIAN')
POINTS, CHANNELS = 32, 32
"""Points of a pillar and channels of its features: constants of the node."""
POINT_WIDTH = {9: 4, 10: 4, 11: 5}
"""encoder_in_feature_size -> point_feature_size."""
FOLDER_KEYS: Mapping[str, Check] = dict(
    version=NAME,
    encoder_onnx_path=text(r'.*\.onnx', 'a path that ends in .onnx'),
    encoder_engine_path=NAME,
    head_onnx_path=text(r'.*\.onnx', 'a path that ends in .onnx'),
    head_engine_path=NAME,
    class_remapper_param_path=NAME,
    trt_precision=one_of('fp32', 'fp16'),
)
MODEL_KEYS: Mapping[str, Check] = dict(
    class_names=items(NAME, 1),
    has_twist=FLAG,
    point_feature_size=one_of(4, 5),
    has_variance=FLAG,
    max_voxel_size=number(1, 10_000_000, whole=True),
    point_cloud_range=cuboid,
    voxel_size=exactly(3, CELL_METRES),
    downsample_factor=COUNT,
    encoder_in_feature_size=one_of(*POINT_WIDTH),
    yaw_norm_thresholds=items(FRACTION),
)
REALS = ('point_cloud_range', 'voxel_size', 'yaw_norm_thresholds')
REMAPPER_KEY = 'class_remapper_param_path'
READ_KEYS = ('encoder_onnx_path', 'head_onnx_path', REMAPPER_KEY)
ENGINE_KEYS = ('encoder_engine_path', 'head_engine_path')


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read."""
    path = folder / MANIFEST
    if not path.is_file():
        return [Violation(MANIFEST, '', 'missing-file', _other_layout(folder))], {}
    values, found = read_parameters(path)
    if found:
        return found, {MANIFEST: path}
    found += key_rules(MANIFEST, values, FOLDER_KEYS)
    if 'version' in right(values, FOLDER_KEYS, found):
        found += _version(values['version'])
    model, wrong = model_params(MANIFEST, values)
    found += wrong
    if not wrong:
        found += key_rules(MANIFEST, model, MODEL_KEYS, REALS, 'model_params.')
        found += _joined(_known(model, found))
        found += _thresholds(model, _known(model, found))
    paths, lost = path_rules(MANIFEST, folder, values, READ_KEYS)
    found += [*lost, *engine_rules(MANIFEST, folder, values, ENGINE_KEYS)]
    if REMAPPER_KEY in paths:
        found += remapper_rules(paths[REMAPPER_KEY])
    found += list(_graphs(paths, _known(model, found), list(found)))
    return found, {path.name: path for path in (path, *paths.values())}


def _known(model: Mapping[str, Any], found: list[Violation]) -> dict[str, Any]:
    return right(model, MODEL_KEYS, found, 'model_params.')


def _other_layout(folder: Path) -> str:
    flat = sorted(path.name for path in folder.glob('*_ml_package.param.yaml'))
    older = sorted(path.name for path in folder.glob('deploy_metadata.yaml'))
    if flat or older:
        return (
            f'{MANIFEST} is not there; {", ".join(flat or older)} is of the layout before manifest v4.1; '
            f'expected a folder for each model: {MANIFEST}, {ENCODER}.onnx, {HEAD}.onnx, {REMAPPER}'
        )
    return f'{MANIFEST} is not there; the node reads every path and size from it'


def _version(version: str) -> Iterator[Violation]:
    parts = re.fullmatch(r'v?([0-9]+)\.([0-9]+)', version)
    if parts is None or int(parts[1]) != 4 or int(parts[2]) < 1:
        said = f'version is {shortened(version)}; the node takes 4.1 and later 4.x, written 4.1 or v4.1'
        yield Violation(MANIFEST, 'version', 'version', said)


def _joined(known: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield keys of the model that do not go together."""
    if 'class_names' in known:
        names, norms = known['class_names'], known.get('yaw_norm_thresholds')
        yield from class_rules(MANIFEST, names, CLASSES)
        if len(set(names)) < len(names):
            said = f'model_params.class_names has a name twice: {", ".join(names)}'
            yield Violation(MANIFEST, 'model_params.class_names', 'class', said)
        if norms is not None and len(norms) != len(names):
            key = 'model_params.yaw_norm_thresholds'
            said = f'{key} has {len(norms)} numbers for {len(names)} classes; the node throws'
            yield Violation(MANIFEST, key, 'value', said)
    if {'encoder_in_feature_size', 'point_feature_size'} <= set(known):
        width, values = known['point_feature_size'], known['encoder_in_feature_size']
        if POINT_WIDTH[values] != width:
            key = 'model_params.point_feature_size'
            said = f'{key} is {width}; of encoder_in_feature_size {values} it is {POINT_WIDTH[values]}'
            yield Violation(MANIFEST, key, 'value', said)
    if {'point_cloud_range', 'voxel_size'} <= set(known):
        cloud, size = known['point_cloud_range'], known['voxel_size']
        yield from grid_rules(MANIFEST, cloud, size[:2])
        height = cloud[5] - cloud[2]
        if abs(size[2] - height) > 1e-4:
            key = 'model_params.voxel_size'
            said = f'{key} is {size[2]:g} m high, the range {height:g} m: a pillar is one voxel'
            yield Violation(MANIFEST, key, 'grid', said, WARNING)


def _thresholds(model: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield scores that do not fit the bins of distance and the classes."""
    at = 'model_params.detection_score_thresholds'
    scores = model.get('detection_score_thresholds')
    if not isinstance(scores, dict):
        yield Violation(MANIFEST, at, 'key', f'{at} is not there; the node declares it without a default')
        return
    own = list(key_rules(MANIFEST, scores, _SCORES, ('distance_bin_upper_limits',), f'{at}.'))
    yield from own
    if own:
        return
    bins, each = len(scores['distance_bin_upper_limits']), scores['min_confidence_scores']
    for name in known.get('class_names', ()):
        key, values = f'{at}.min_confidence_scores.{name}', each.get(name)
        if not isinstance(values, list) or len(values) != bins:
            got = 'is not there' if values is None else f'is {shortened(values)}'
            yield Violation(MANIFEST, key, 'value', f'{key} {got}, expected {bins} numbers, one of each bin')
        elif not are_reals(values):
            yield Violation(MANIFEST, key, 'ros-type', f'{key} {NOT_REAL}')
        elif not all(0 <= score < 1 for score in values):
            said = f'{key} is {values}; the node takes what is not in [0, 1) for 0: every box passes'
            yield Violation(MANIFEST, key, 'value', said)


def _mapping(value: Any, where: str) -> None:
    from mmdeploy_ext.contract.schema import mismatch

    if not isinstance(value, dict):
        raise mismatch(value, where, 'a list of scores for each class')


_SCORES = dict(distance_bin_upper_limits=ascending, min_confidence_scores=_mapping)


def _graphs(
    paths: Mapping[str, Path], known: Mapping[str, Any], violations: list[Violation]
) -> Iterator[Violation]:
    """Yield what is wrong with the graphs; they are tried where nothing else in the folder is wrong."""
    tried = []
    rows = ('encoder_onnx_path', encoder_bounds, LOAD), ('head_onnx_path', head_bounds, CONVENTION)
    for key, bounds, probe in rows:
        if key not in paths:
            continue
        path = paths[key]
        graph, wrong = read_graph(path)
        if graph is not None:
            wrong += [
                *by_index(path.name, ends_of(graph), bounds(known), 1),
                *graph_rules(path.name, graph, {}),
            ]
            tried.append((path, graph, probe))
        violations = [*violations, *wrong]
        yield from wrong
    if not has_errors(violations):
        yield from trial_rules(tried)


def encoder_bounds(known: Mapping[str, Any]) -> list[Bound]:
    """Return the tensors of the encoder: of sizes that the manifest does not say rightly, None."""
    pillars = known.get('max_voxel_size')
    return [
        Bound('input_features', (pillars, POINTS, known.get('encoder_in_feature_size'))),
        Bound('pillar_features', (pillars, 1, CHANNELS)),
    ]


def head_bounds(known: Mapping[str, Any]) -> list[Bound]:
    """Return the tensors of the head; see `encoder_bounds`."""
    grid: Shape = (None, None)
    if {'point_cloud_range', 'voxel_size'} <= set(known):
        cloud, size = known['point_cloud_range'], known['voxel_size']
        grid = tuple(node_cells(cloud[axis], cloud[axis + 3], size[axis]) for axis in (1, 0))
    stride, twice = known.get('downsample_factor'), known.get('has_variance')
    cells = tuple(None if None in (side, stride) else side // stride for side in grid)
    classes = len(known['class_names']) if 'class_names' in known else None
    counts = dict(reg=2, height=1, dim=3, rot=2, vel=2)
    values = {name: None if twice is None else count * (1 + twice) for name, count in counts.items()}
    return [
        Bound('spatial_features', (1, CHANNELS, *grid)),
        *(Bound(name, (1, count, *cells)) for name, count in dict(heatmap=classes, **values).items()),
    ]
