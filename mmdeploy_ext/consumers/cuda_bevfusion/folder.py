"""What CUDA-BEVFusion would reject or read wrongly in a folder of ONNX files, whoever wrote them.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion: src/bevfusion/*.cu and src/main.cpp (their
behaviour, in own words). Needs onnx and numpy only. What the check cannot tell: whether the numbers are
right.

Glossary: N cameras, h, w cells of a feature map, C channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.consumers.export_records import mixture_rules
from mmdeploy_ext.consumers.graph_tensors import fed_inputs, graph_tensors, shape_of, shape_text, weight_rules
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.violations import ERROR, WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from mmdeploy_ext.consumers.graph_tensors import GraphTensors

BOUND = {
    'camera.backbone': (('img', 'depth'), ('camera_feature', 'camera_depth_weights')),
    'camera.vtransform': (('feat_in',), ('feat_out',)),
    'fuser': (('camera', 'lidar'), ('middle',)),
    'head.bbox': (('middle',), ('score', 'rot', 'dim', 'reg', 'height', 'vel')),
}
"""File -> inputs and outputs that the C++ looks up by name."""
SPARSE = 'lidar.backbone.xyz', 'lidar.backbone.zyx'
"""Files of the sparse backbone, by the order of the coordinates; one of them is enough."""
OPSET = 13
"""Opset of NVIDIA's own files."""
PLUGIN = 'CustomLayerNormalization'
"""Operator of a plug-in of TensorRT, in the domain `nv`: NVIDIA's script writes it for LayerNormalization."""
PLUGIN_ATTRIBUTES = dict(axis=-1, epsilon=1e-5)
"""Attributes of the operator -> the values with which the plug-in computes."""
POOLING_STEP = 10
"""Channels that one thread of the pooling kernel adds up."""
MAIN_SHAPES = {
    'img': (1, 6, 3, 256, 704),
    'camera_feature': (6, 32, 88, 80),
    'camera_depth_weights': (6, 118, 32, 88),
    'feat_in': (1, 80, 360, 360),
    'feat_out': (1, 80, 180, 180),
    'score': (1, 10, None),
}
"""Name -> sizes that src/main.cpp has as constants; None for a size that it reads from the engine."""
HEAD_ROWS = dict(rot=2, dim=3, reg=2, height=1, vel=2)
"""Output of the head -> values of a query."""


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and the paths of those of its files that are there.

    They are by name without `.onnx`. The `node` of a violation is the name of a file, of a sparse file with
    that of the node behind it; '' if neither sparse file is there. Of other files the message names the node.

    Raises:
        ModelFileError: no such folder, or one of these files in it that is not ONNX.
    """
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.sparse import libspconv_contract

    if not Path(folder).is_dir():
        raise ModelFileError(f'{folder}: no such folder; expected one with {", ".join(BOUND)} as .onnx')
    paths = {name: Path(folder) / f'{name}.onnx' for name in (*BOUND, *SPARSE)}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    consequence = 'is not there; the engine cannot be built'
    violations = [
        Violation(f'{name}.onnx', '', 'missing-file', consequence) for name in BOUND if name not in paths
    ]
    if not set(SPARSE) & set(paths):
        violations.append(Violation('', '', 'missing-file', f'neither {" nor ".join(SPARSE)} is there'))
    tensors, models = {}, {}
    for name, path in paths.items():
        file = f'{name}.onnx'
        model = models[file] = files.read(path)
        tensors[name] = graph_tensors(model)
        if name in SPARSE:
            file_violations = libspconv_contract.check(model, name=file)
        else:
            file_violations = _file_rules(name, model)
            violations += weight_rules(file, model)
        for violation in file_violations:
            violations.append(dataclasses.replace(violation, node=f'{file} {violation.node}'.strip()))
    return [*violations, *_size_rules(tensors), *mixture_rules(models)], paths


# ---- single files


def _file_rules(name: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS, is_sparse

    if is_sparse(model):
        yield Violation('', '', 'other-dialect', 'holds sparse convolutions; expected ordinary ONNX')
        return
    for side, values, names in zip(
        ('input', 'output'), (fed_inputs(model), model.graph.output), BOUND[name], strict=True
    ):
        yield from _name_rules(side, [value.name for value in values], names)
        for value in values:
            yield from _type_rules(value)
    yield from _node_rules(model, DEFAULT_DOMAINS)
    opsets = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if opsets != [OPSET]:
        message = f"is of opset {opsets}; NVIDIA's own exports are of {OPSET}"
        yield Violation('', '', 'opset', message, WARNING)


def _name_rules(side: str, names: list[str], bound: tuple[str, ...]) -> Iterator[Violation]:
    for name in [name for name in bound if name not in names]:
        message = f'has no {side} {name!r}, which the C++ looks up; there are {", ".join(names)}'
        yield Violation('', name, 'name', message)
    for name in [name for name in names if name not in bound]:
        yield Violation('', name, 'name', f'has an {side} {name!r} that the C++ binds nothing to')
    if sorted(names) == sorted(bound) and tuple(names) != bound:
        message = (
            f'{side}s are {", ".join(names)}; the C++ binds by name, what binds by place would mix them '
        )
        yield Violation('', '', 'order', message + 'up', WARNING)


def _type_rules(value: onnx.ValueInfoProto) -> Iterator[Violation]:
    import onnx

    from mmdeploy_ext.graph.io.types import type_name

    elem_type = value.type.tensor_type.elem_type
    if elem_type == onnx.TensorProto.FLOAT16:
        message = (
            f'{value.name} is float16; the ONNX files are float32, and the engine is built with fp16:chw'
        )
        yield Violation('', value.name, 'type', message, WARNING)
    elif elem_type != onnx.TensorProto.FLOAT:
        yield Violation('', value.name, 'type', f'{value.name} is {type_name(elem_type)}, expected FLOAT')
    if None in shape_of(value) or not shape_of(value):
        message = f'{value.name} has axes that are not fixed; the C++ reads every size from the engine'
        yield Violation('', value.name, 'dynamic', message)


def _node_rules(model: onnx.ModelProto, standard_domains: tuple[str, ...]) -> Iterator[Violation]:
    from mmdeploy_ext.graph.io.index import all_nodes, node_attributes

    for node in all_nodes(model):
        if node.domain in standard_domains:
            continue
        if (node.domain, node.op_type) != ('nv', PLUGIN):
            message = f'{node.name}: {node.domain}::{node.op_type} is no operator of ONNX or of this engine'
            yield Violation('', '', 'operator', message)
            continue
        message = f'{node.name}: {PLUGIN} needs the plug-in of that name when the engine is built'
        yield Violation('', '', 'plug-in', message, WARNING)
        attributes = node_attributes(node)
        for name, value in PLUGIN_ATTRIBUTES.items():
            got = attributes.get(name)
            if not isinstance(got, int | float) or not abs(got - value) <= 1e-9:  # NaN neither
                message = f'{node.name}: {name} is {got}, the plug-in computes with {value}'
                yield Violation('', name, 'attribute', message)
        if len(node.input) != 3:
            message = f'{node.name}: has {len(node.input)} inputs, expected x, weight, bias'
            yield Violation('', '', 'attribute', message)
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = producers.get('camera_depth_weights')
    if weights is not None and weights.op_type == 'Softmax':
        axis = next((entry.i for entry in weights.attribute if entry.name == 'axis'), -1)
        if axis not in (1, -3):
            message = (
                f'the Softmax of camera_depth_weights is over axis {axis}, expected 1: the bins of depth'
            )
            yield Violation('', 'camera_depth_weights', 'axes', message)


# ---- sizes: how they go together, and what main.cpp has as constants


def _size_rules(tensors: Mapping[str, GraphTensors]) -> Iterator[Violation]:
    """Yield sizes that the C++ would read wrongly, of the tensors by file, without `.onnx`.

    A missing tensor is no violation here: `_file_rules` reports it.
    """
    yield from _camera_rules(tensors)
    pairs = [
        (('camera.vtransform', 'feat_out'), ('fuser', 'camera'), 'the fuser reads the cameras from it'),
        (('fuser', 'middle'), ('head.bbox', 'middle'), 'the head reads it'),
    ]
    for name in tensors:
        if name.startswith('lidar'):
            output = next(iter(tensors[name].outputs), '')
            pairs.append(((name, output), ('fuser', 'lidar'), 'the fuser reads the LiDAR from it'))
    for source, target, reason in pairs:
        yield from _rank_rules(tensors, {source: 4, target: 4})
        out_shape, in_shape = _shape(tensors, *source, 4), _shape(tensors, *target, 4)
        if out_shape and in_shape and out_shape != in_shape:
            message = f'{target[1]} is {shape_text(in_shape)}, {source[1]} of {source[0]}.onnx '
            yield _wrong_size(*target, f'{message}{shape_text(out_shape)}: {reason}')
    file = 'head.bbox'
    yield from _rank_rules(tensors, {(file, name): 3 for name in ('score', *HEAD_ROWS)})
    score = _shape(tensors, file, 'score', 3)
    if score and score[0] != 1:
        yield _wrong_size(file, 'score', f'score is {shape_text(score)}: the C++ takes one sample')
    for name, rows in HEAD_ROWS.items():
        shape, expected = _shape(tensors, file, name, 3), score and (1, rows, score[2])
        if shape and expected and shape != expected:
            message = f'{name} is {shape_text(shape)}, expected {shape_text(expected)}, as score has queries'
            yield _wrong_size(file, name, message)
    yield from _main_rules(tensors)


def _camera_rules(tensors: Mapping[str, GraphTensors]) -> Iterator[Violation]:
    """Yield sizes that do not go together in the camera's files."""
    file, ranks = 'camera.backbone', dict(img=5, depth=5, camera_feature=4, camera_depth_weights=4)
    yield from _rank_rules(tensors, {(file, name): rank for name, rank in ranks.items()})
    img, depth, feature, weights = (_shape(tensors, file, name, rank) for name, rank in ranks.items())
    if img and depth and (img[:2], 1, img[3:]) != (depth[:2], depth[2], depth[3:]):
        message = f'depth is {shape_text(depth)}, img {shape_text(img)}: one value of each pixel'
        yield _wrong_size(file, 'depth', message)
    if img and img[0] != 1:
        yield _wrong_size(file, 'img', f'img is {shape_text(img)}: the C++ takes one sample')
    if feature and weights:
        if feature[1:3] != weights[2:]:
            channels_first = feature[2:] == weights[2:]
            reason = 'channels stand first, and the C++ reads N, h, w, C'
            message = f'camera_feature is {shape_text(feature)} beside weights of {shape_text(weights)}: '
            message += reason if channels_first else 'expected N, h, w, C'
            yield _wrong_size(file, 'camera_feature', message, 'axes')
        elif feature[3] % POOLING_STEP:
            message = f'camera_feature has {feature[3]} channels; a thread of the pooling adds up '
            yield _wrong_size(file, 'camera_feature', f'{message}{POOLING_STEP}')
        if feature[0] != weights[0] or (img and feature[0] != img[1]):
            message = f'camera_feature is of {feature[0]} cameras, the weights of {weights[0]}'
            yield _wrong_size(file, 'camera_feature', message + (f', img of {img[1]}' if img else ''))
    cells, channels = _shape(tensors, 'camera.vtransform', 'feat_in', 4), feature and feature[3]
    if cells and channels and cells[:2] != (1, channels):
        message = f'feat_in is {shape_text(cells)}, the pooled features have {channels} channels'
        yield _wrong_size('camera.vtransform', 'feat_in', message)


def _main_rules(tensors: Mapping[str, GraphTensors]) -> Iterator[Violation]:
    """Yield sizes other than those of main.cpp; the tensors go together, so its constants have to change."""
    for file, file_tensors in tensors.items():
        for name, constants in MAIN_SHAPES.items():
            shape = file_tensors.shapes.get(name)
            if not shape or len(shape) != len(constants):
                continue
            if any(constant not in (None, size) for size, constant in zip(shape, constants, strict=True)):
                message = f'{name} is {shape_text(shape)}, main.cpp has {shape_text(constants)}: change its '
                yield _wrong_size(file, name, message + 'constants', 'main.cpp', WARNING)


def _rank_rules(
    tensors: Mapping[str, GraphTensors], ranks: Mapping[tuple[str, str], int]
) -> Iterator[Violation]:
    """Yield tensors, by file and name, of fixed shape and another number of axes."""
    for (file, name), rank in ranks.items():
        shape = _fixed_shape(tensors, file, name)
        if shape and len(shape) != rank:
            yield _wrong_size(file, name, f'{name} is {shape_text(shape)}, expected {rank} axes')


def _shape(tensors: Mapping[str, GraphTensors], file: str, name: str, rank: int) -> tuple[int, ...] | None:
    """Return a fixed shape with a number of axes, None if it is another."""
    shape = _fixed_shape(tensors, file, name)
    return shape if shape and len(shape) == rank else None


def _fixed_shape(tensors: Mapping[str, GraphTensors], file: str, name: str) -> tuple[int, ...] | None:
    """Return the shape of a tensor, None if it is missing or not fixed."""
    shape = tensors[file].shapes.get(name) if file in tensors else None
    return None if shape is None or None in shape else shape


def _wrong_size(file: str, name: str, message: str, rule: str = 'shape', severity: str = ERROR) -> Violation:
    return Violation(f'{file}.onnx', name, rule, message, severity)


PATTERNS = tuple(f'{name}.onnx' for name in (*BOUND, *SPARSE))
"""Patterns of files by which a folder is recognised."""
