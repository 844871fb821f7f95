"""Check a folder of ONNX files against CUDA-BEVFusion.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion: src/bevfusion/*.cu and src/main.cpp
(behaviour in own words).

Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, C channels, X, Y
cells of the pooled view, x, y cells of the maps that are joined, K classes, Q queries.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mm2onnx_driving.folder_rules import (
    expected_shape,
    fits,
    graph_tensors,
    mixture_rules,
    shape_text,
    weight_rules,
)
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from mm2onnx_driving.folder_rules import GraphTensors

SPARSE = 'lidar.backbone.xyz', 'lidar.backbone.zyx'
"""Files of the sparse backbone by order of coordinates; one is enough."""
LIDAR_MAP = '1 lidar x y'
"""Axes of the only output of a sparse file."""
BOUND = {
    'camera.backbone': (
        dict(img='1 N 3 H W', depth='1 N 1 H W'),
        dict(camera_depth_weights='N D h w', camera_feature='N h w C'),
    ),
    'camera.vtransform': (dict(feat_in='1 C X Y'), dict(feat_out='1 camera x y')),
    **{name: ({}, {}) for name in SPARSE},
    'fuser': (dict(camera='1 camera x y', lidar=LIDAR_MAP), dict(middle='1 joined x y')),
    'head.bbox': (
        dict(middle='1 joined x y'),
        dict(score='1 K Q', rot='1 2 Q', dim='1 3 Q', reg='1 2 Q', height='1 1 Q', vel='1 2 Q'),
    ),
}
"""File -> inputs and outputs that the C++ looks up, with a word per axis, see `expected_shape`."""
PLUGIN = 'CustomLayerNormalization'
"""NVIDIA's plug-in for LayerNormalization, in the domain `nv`."""
PLUGIN_ATTRIBUTES = dict(axis=-1, epsilon=1e-5)
"""Attributes of the operator -> fixed values of the plug-in."""
POOLING_STEP = 10
"""Channels per thread of the pooling kernel."""
MAIN_SHAPES = {
    'img': (1, 6, 3, 256, 704),
    'camera_feature': (6, 32, 88, 80),
    'camera_depth_weights': (6, 118, 32, 88),
    'feat_in': (1, 80, 360, 360),
    'feat_out': (1, 80, 180, 180),
    'score': (1, 10, None),
}
"""Name -> constant sizes of src/main.cpp; None: read from the engine."""
PATTERNS = tuple(f'{name}.onnx' for name in BOUND)
"""Patterns of files by which a folder is recognised."""


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and its known files' paths."""
    from mmdeploy_ext.exporting.sparse import libspconv_contract
    from mmdeploy_ext.graphs.io import files

    if not Path(folder).is_dir():
        raise ModelFileError(f'{folder}: no such folder; expected one with {", ".join(BOUND)} as .onnx')
    paths = {name: Path(folder) / f'{name}.onnx' for name in BOUND}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    missing = [name for name in BOUND if name not in paths and name not in SPARSE]
    violations = [
        Violation(f'{name}.onnx', '', 'missing-file', 'is missing; the engine cannot be built')
        for name in missing
    ]
    if not set(SPARSE) & set(paths):
        violations.append(
            Violation('', '', 'missing-file', f'{" and ".join(SPARSE)} are missing; one is needed')
        )
    models: dict[str, onnx.ModelProto] = {}
    sizes: dict[str, int] = {}
    for name, path in paths.items():
        file = f'{name}.onnx'
        model = models[file] = files.read(path)
        tensors, (inputs, outputs) = graph_tensors(model), BOUND[name]
        if name in SPARSE:
            outputs = dict.fromkeys(tensors.outputs, LIDAR_MAP)
            for violation in libspconv_contract.check(model, name=file):
                violations.append(dataclasses.replace(violation, node=f'{file} {violation.node}'.strip()))
        else:
            violations += _file_rules(file, model, tensors, inputs, outputs)
        violations += _size_rules(file, tensors, inputs | outputs, sizes)
    return [*violations, *mixture_rules(models)], paths


def _file_rules(
    file: str,
    model: onnx.ModelProto,
    tensors: GraphTensors,
    inputs: dict[str, str],
    outputs: dict[str, str],
) -> Iterator[Violation]:
    from mmdeploy_ext.graphs.io.files import is_sparse

    if is_sparse(model):
        yield Violation(file, '', 'other-dialect', 'has sparse convolutions; expected ordinary ONNX')
        return
    for side, names, bound in (('input', tensors.inputs, inputs), ('output', tensors.outputs, outputs)):
        for name in sorted(bound.keys() - names.keys()):
            message = f'has no {side} {name!r}, which the C++ looks up by name; there are {", ".join(names)}'
            yield Violation(file, name, 'name', message)
        for name in sorted(names.keys() - bound.keys()):
            yield Violation(file, name, 'name', f'has an {side} {name!r} that the C++ does not bind')
    for name, shape in tensors.shapes.items():
        kind = tensors.types[name]
        if kind == 'FLOAT16':
            message = f'{name} is float16; the ONNX files are float32, and the engine is built with fp16:chw'
            yield Violation(file, name, 'type', message, WARNING)
        elif kind != 'FLOAT':
            yield Violation(file, name, 'type', f'{name} is {kind}, expected FLOAT')
        if None in shape or not shape:
            message = (
                f'{name} has dynamic axes, but the C++ reads every size from the engine: export with '
                'fixed sizes'
            )
            yield Violation(file, name, 'dynamic', message)
    yield from _node_rules(file, model)
    yield from weight_rules(file, model)


def _node_rules(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from mmdeploy_ext.graphs.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graphs.io.index import all_nodes, node_attributes

    for node in all_nodes(model):
        if node.domain in DEFAULT_DOMAINS:
            continue
        if (node.domain, node.op_type) != ('nv', PLUGIN):
            message = (
                f'{node.name}: {node.domain}::{node.op_type} is not an operator of ONNX or of this engine'
            )
            yield Violation(file, '', 'operator', message)
            continue
        message = f'{node.name}: {PLUGIN} needs the plug-in of that name to build the engine'
        yield Violation(file, '', 'plug-in', message, WARNING)
        attributes = node_attributes(node)
        for name, value in PLUGIN_ATTRIBUTES.items():
            if not math.isclose(got := attributes.get(name, math.nan), value, abs_tol=1e-9):
                message = f'{node.name}: {name} is {got}, but the plug-in always uses {value}'
                yield Violation(file, name, 'attribute', message)


def _size_rules(
    file: str, tensors: GraphTensors, bound: dict[str, str], sizes: dict[str, int]
) -> Iterator[Violation]:
    for name, axes in bound.items():
        shape = tensors.shapes.get(name, ())
        if None in shape or not shape:
            continue
        expected = expected_shape(axes, sizes)
        if not fits(shape, expected):
            message = f'{name} is {shape_text(shape)}, expected {shape_text(expected)}: {axes}'
            yield Violation(file, name, 'shape', message)
        else:
            sizes.update(zip(axes.split(), shape, strict=True))
        if name == 'camera_feature' and shape[-1] % POOLING_STEP:
            message = (
                f'{name} has {shape[-1]} channels, expected a multiple of {POOLING_STEP} (one pooling '
                f'thread adds {POOLING_STEP})'
            )
            yield Violation(file, name, 'shape', message)
        main = MAIN_SHAPES.get(name, shape)
        if len(main) == len(shape) and not fits(shape, main):
            message = (
                f'{name} is {shape_text(shape)}, but main.cpp has {shape_text(main)}: change the '
                'constants in main.cpp'
            )
            yield Violation(file, name, 'main.cpp', message, WARNING)
