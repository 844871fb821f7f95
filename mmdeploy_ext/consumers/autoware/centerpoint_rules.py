"""What autoware_lidar_centerpoint would reject or read wrongly in a folder of its manifest v4.1.

Source: autowarefoundation/autoware_universe, commit 656cdab8 (manifest v4.1, its schema and test) and commit
5e12a711 (centerpoint_trt.cpp, centerpoint_config.hpp, ros_utils.cpp): facts, no code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.file_rules import Bound, bind_by_index, operator_rules, read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    CELL_METRES,
    MODEL_PREFIX,
    NOT_REAL,
    REMAPPER,
    are_reals,
    ascending,
    class_rules,
    cuboid,
    engine_rules,
    export_rules,
    grid_rules,
    key_rules,
    model_params,
    node_cells,
    path_rules,
    read_parameters,
    remapper_rules,
    valid_values,
)
from mmdeploy_ext.consumers.autoware.trial import CONVENTION, LOAD, trial_rules
from mmdeploy_ext.consumers.graph_tensors import graph_tensors
from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    FRACTION,
    NAME,
    exactly,
    items,
    mismatch,
    number,
    one_of,
    text,
)
from mmdeploy_ext.core.errors import shortened
from mmdeploy_ext.core.violations import WARNING, Violation, errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mmdeploy_ext.consumers.graph_tensors import Shape
    from mmdeploy_ext.contract.schema import Check

MANIFEST = 'ml_package.param.yaml'
"""File name of the manifest."""
ENCODER, HEAD = 'pts_voxel_encoder', 'pts_backbone_neck_head'
"""Names of the two graphs."""
PATTERNS = (f'{ENCODER}*.onnx', f'{HEAD}*.onnx')
"""Patterns of files by which a folder of this node is recognised, beside the manifest."""
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'BICYCLE', 'MOTORBIKE', 'PEDESTRIAN')
"""Class names that the node knows."""
POINTS, CHANNELS = 32, 32
"""Points of a pillar and channels of its features: constants of the node."""
POINT_WIDTH = {9: 4, 10: 4, 11: 5}
"""encoder_in_feature_size, values of a decorated point -> point_feature_size, values of a point."""
FOLDER_KEYS: Mapping[str, Check] = dict(
    version=NAME,
    encoder_onnx_path=text(r'.*\.onnx', 'a path that ends in .onnx'),
    encoder_engine_path=NAME,
    head_onnx_path=text(r'.*\.onnx', 'a path that ends in .onnx'),
    head_engine_path=NAME,
    class_remapper_param_path=NAME,
    trt_precision=one_of('fp32', 'fp16'),
)
"""Key of the manifest beside the model's -> check of its value."""
MODEL_KEYS: Mapping[str, Check] = dict(
    class_names=items(NAME, 1),
    has_twist=FLAG,
    point_feature_size=one_of(4, 5),
    has_variance=FLAG,
    max_voxel_size=number(1, 10_000_000, integer=True),
    point_cloud_range=cuboid,
    voxel_size=exactly(3, CELL_METRES),
    downsample_factor=COUNT,
    encoder_in_feature_size=one_of(*POINT_WIDTH),
    yaw_norm_thresholds=items(FRACTION),
)
"""Key of the model -> check of its value."""
REALS = ('point_cloud_range', 'voxel_size', 'yaw_norm_thresholds')
"""Keys of the model that the node declares as floating point, see `key_rules`."""
THRESHOLDS = 'detection_score_thresholds'
"""Key of the thresholds of scores."""
LIMITS, SCORES = 'distance_bin_upper_limits', 'min_confidence_scores'
"""Keys below `THRESHOLDS`: metres of each bin of distance, and class name -> a score for each bin."""
REMAPPER_KEY = 'class_remapper_param_path'
"""Key of the path of the file that maps classes."""
READ_KEYS = ('encoder_onnx_path', 'head_onnx_path', REMAPPER_KEY)
"""Keys whose values are paths of files that the node reads."""
ENGINE_KEYS = ('encoder_engine_path', 'head_engine_path')
"""Keys whose values are paths of engines of TensorRT that the node writes."""


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of the manifest and the files that it names.

    These are the files that the node reads (`READ_KEYS`), as far as they are there. What is wrong with a file
    is a violation; without an error both graphs are loaded and, unless they are large, run on zeros, and a
    probe is sent through the head, see `trial.trial_rules`. ModelFileError: PyYAML is not installed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return [_missing_manifest(folder)], {}
    values, violations = read_parameters(path)
    if violations:
        return violations, {MANIFEST: path}
    violations += key_rules(MANIFEST, values, FOLDER_KEYS)
    version = valid_values(values, FOLDER_KEYS, violations).get('version')
    if version is not None and not re.fullmatch(r'v?0*4\.0*[1-9][0-9]*', version):
        message = f'version is {shortened(version)}; the node takes 4.1 and later 4.x, written 4.1 or v4.1'
        violations.append(Violation(MANIFEST, 'version', 'version', message))
    model, missing = model_params(MANIFEST, values)
    violations += missing
    if not missing:
        violations += key_rules(MANIFEST, model, MODEL_KEYS, REALS, MODEL_PREFIX)
        violations += _model_rules(valid_values(model, MODEL_KEYS, violations, MODEL_PREFIX))
        valid = valid_values(model, MODEL_KEYS, violations, MODEL_PREFIX)
        violations += _threshold_rules(model.get(THRESHOLDS), valid.get('class_names', ()))
    paths, wrong_paths = path_rules(MANIFEST, folder, values, READ_KEYS)
    violations += [*wrong_paths, *engine_rules(MANIFEST, folder, values, ENGINE_KEYS)]
    if REMAPPER_KEY in paths:
        violations += remapper_rules(paths[REMAPPER_KEY])
    valid, graphs = valid_values(model, MODEL_KEYS, violations, MODEL_PREFIX), []
    # the head's file is tried with a probe of its convention as well, see `trial.py`
    for key, bounds, probe in (
        ('encoder_onnx_path', _encoder_bounds(valid), LOAD),
        ('head_onnx_path', _head_bounds(valid), CONVENTION),
    ):
        if key not in paths:
            continue
        file = paths[key].name
        graph, unreadable = read_graph(paths[key])
        violations += unreadable
        if graph is not None:
            violations += bind_by_index(file, graph_tensors(graph), bounds, input_count=1)
            violations += operator_rules(file, graph, plugins={})
            graphs.append((paths[key], graph, probe))
    models = {path.name: graph for path, graph, _ in graphs}
    violations += export_rules(MANIFEST, models, valid, CLASSES, prefix=MODEL_PREFIX)
    if not errors(violations):
        violations += trial_rules(graphs)
    return violations, {path.name: path for path in (path, *paths.values())}


def _missing_manifest(folder: Path) -> Violation:
    """Return the violation of a folder without a manifest, which may be of an older layout."""
    problem = 'the node reads every path and size from it'
    older = sorted(path.name for path in folder.glob('*_ml_package.param.yaml'))
    older = older or sorted(path.name for path in folder.glob('deploy_metadata.yaml'))
    if older:
        problem = (
            f'{", ".join(older)} is of the layout before manifest v4.1; expected a folder for each model: '
            f'{MANIFEST}, {ENCODER}.onnx, {HEAD}.onnx, {REMAPPER}'
        )
    return Violation(MANIFEST, '', 'missing-file', f'{MANIFEST} is not there; {problem}')


def _model_rules(valid: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield violations of rules that join several keys of the model; `valid` has those without an error."""
    if 'class_names' in valid:
        names, yaw_thresholds = valid['class_names'], valid.get('yaw_norm_thresholds')
        yield from class_rules(MANIFEST, names, CLASSES)
        if len(set(names)) < len(names):
            key = f'{MODEL_PREFIX}class_names'
            yield Violation(MANIFEST, key, 'class', f'{key} has a name twice: {", ".join(names)}')
        if yaw_thresholds is not None and len(yaw_thresholds) != len(names):
            key = f'{MODEL_PREFIX}yaw_norm_thresholds'
            message = f'{key} has {len(yaw_thresholds)} numbers for {len(names)} classes; the node throws'
            yield Violation(MANIFEST, key, 'value', message)
    if {'encoder_in_feature_size', 'point_feature_size'} <= set(valid):
        point_size, encoder_size = valid['point_feature_size'], valid['encoder_in_feature_size']
        expected = POINT_WIDTH[encoder_size]
        if point_size != expected:
            key = f'{MODEL_PREFIX}point_feature_size'
            message = f'{key} is {point_size}; of encoder_in_feature_size {encoder_size} it is {expected}'
            yield Violation(MANIFEST, key, 'value', message)
    if {'point_cloud_range', 'voxel_size'} <= set(valid):
        cloud, size = valid['point_cloud_range'], valid['voxel_size']
        yield from grid_rules(MANIFEST, cloud, size[:2])
        height = cloud[5] - cloud[2]
        if abs(size[2] - height) > 1e-4:
            key = f'{MODEL_PREFIX}voxel_size'
            message = f'{key} is {size[2]:g} m high, the range {height:g} m: a pillar is one voxel'
            yield Violation(MANIFEST, key, 'grid', message, WARNING)


def _threshold_rules(thresholds: Any, class_names: list[str]) -> Iterator[Violation]:
    """Yield violations of the score thresholds: each class needs one for each bin of distance."""

    def is_mapping(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise mismatch(value, name, 'a list of scores for each class')

    parent = f'{MODEL_PREFIX}{THRESHOLDS}'
    if not isinstance(thresholds, dict):
        message = f'{parent} is not there; the node declares it without a default'
        yield Violation(MANIFEST, parent, 'key', message)
        return
    fields = {LIMITS: ascending, SCORES: is_mapping}
    violations = list(key_rules(MANIFEST, thresholds, fields, (LIMITS,), f'{parent}.'))
    yield from violations
    if violations:
        return
    bins = len(thresholds[LIMITS])
    for name in class_names:
        key, scores = f'{parent}.{SCORES}.{name}', thresholds[SCORES].get(name)
        if not isinstance(scores, list) or len(scores) != bins:
            got = 'is not there' if scores is None else f'is {shortened(scores)}'
            message = f'{key} {got}, expected {bins} numbers, one of each bin'
            yield Violation(MANIFEST, key, 'value', message)
        elif not are_reals(scores):
            yield Violation(MANIFEST, key, 'ros-type', f'{key} {NOT_REAL}')
        elif not all(0 <= score < 1 for score in scores):
            message = f'{key} is {scores}; the node takes what is not in [0, 1) for 0: every box passes'
            yield Violation(MANIFEST, key, 'value', message)


def _encoder_bounds(valid: Mapping[str, Any]) -> list[Bound]:
    """Return the tensors of the encoder; a size without a valid value in the manifest is None."""
    pillars = valid.get('max_voxel_size')
    return [
        Bound('input_features', (pillars, POINTS, valid.get('encoder_in_feature_size'))),
        Bound('pillar_features', (pillars, 1, CHANNELS)),
    ]


def _head_bounds(valid: Mapping[str, Any]) -> list[Bound]:
    """Return the tensors of the head; see `_encoder_bounds`."""
    grid: Shape = (None, None)
    if {'point_cloud_range', 'voxel_size'} <= set(valid):
        cloud, size = valid['point_cloud_range'], valid['voxel_size']
        grid = tuple(node_cells(cloud[axis], cloud[axis + 3], size[axis]) for axis in (1, 0))
    stride, has_variance = valid.get('downsample_factor'), valid.get('has_variance')
    cells = tuple(None if None in (side, stride) else side // stride for side in grid)
    classes = len(valid['class_names']) if 'class_names' in valid else None
    bounds = [Bound('spatial_features', (1, CHANNELS, *grid)), Bound('heatmap', (1, classes, *cells))]
    for name, count in dict(reg=2, height=1, dim=3, rot=2, vel=2).items():
        channels = None if has_variance is None else count * (1 + has_variance)
        bounds.append(Bound(name, (1, channels, *cells)))
    return bounds
