"""What CUDA-BEVFusion would reject or read wrongly in a folder of ONNX files, whoever wrote them.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion: src/bevfusion/*.cu and src/main.cpp (their
behaviour, in own words). Needs onnx and numpy only. What it cannot tell: whether the numbers are right.

Glossary: N cameras, D depth bins, h, w cells of a feature map, C channels, X, Y cells of the view from above,
K classes, Q queries.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.consumers.cuda_bevfusion.contract_sizes import size_rules
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.violations import WARNING, Violation
from mmdeploy_ext.families.bevfusion.runtime.pooling import write_tables
from mmdeploy_ext.runtime.contract_files import ends_of, given_inputs, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

BOUND = {
    'camera.backbone': (('img', 'depth'), ('camera_feature', 'camera_depth_weights')),
    'camera.vtransform': (('feat_in',), ('feat_out',)),
    'fuser': (('camera', 'lidar'), ('middle',)),
    'head.bbox': (('middle',), ('score', 'rot', 'dim', 'reg', 'height', 'vel')),
}
"""File -> inputs and outputs that the C++ looks up by name."""
SPARSE = 'lidar.backbone.xyz', 'lidar.backbone.zyx'
OPSET = 13
PLUGIN = 'CustomLayerNormalization'
"""Of TensorRT, in the domain `nv`: NVIDIA's script writes it for LayerNormalization, with the attributes
below."""
PLUGIN_ATTRIBUTES = dict(axis=-1, epsilon=1e-5)


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read; `node` is the file's name.

    Raises:
        ModelFileError: no such folder, or a file in it that is not ONNX.
    """
    from mmdeploy_ext.graph.io import files as onnx_files
    from mmdeploy_ext.sparse import libspconv_contract

    if not Path(folder).is_dir():
        raise ModelFileError(f'{folder}: no such folder; expected one with {", ".join(BOUND)} as .onnx')
    paths = {name: Path(folder) / f'{name}.onnx' for name in (*BOUND, *SPARSE)}
    there = {name: path for name, path in paths.items() if path.is_file()}
    absent, said = [name for name in BOUND if name not in there], 'is not there; the engine cannot be built'
    found = [Violation(f'{name}.onnx', '', 'missing-file', said) for name in absent]
    if not set(SPARSE) & set(there):
        found.append(Violation('', '', 'missing-file', f'neither {" nor ".join(SPARSE)} is there'))
    ends = {}
    for name, path in there.items():
        model = onnx_files.read(path)
        ends[name] = ends_of(model)
        own = (
            libspconv_contract.check(model, name=f'{name}.onnx')
            if name in SPARSE
            else _file_rules(name, model)
        )
        found += [dataclasses.replace(one, node=f'{name}.onnx {one.node}'.strip()) for one in own]
    return [*found, *size_rules(ends)], there


def _file_rules(name: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS, is_sparse

    if is_sparse(model):
        yield Violation('', '', 'other-dialect', 'holds sparse convolutions; expected ordinary ONNX')
        return
    given = given_inputs(model), list(model.graph.output)
    for side, values, wanted in zip(('input', 'output'), given, BOUND[name], strict=True):
        yield from _names(side, [value.name for value in values], wanted)
        yield from (one for value in values for one in _types(value))
    yield from _nodes(model, DEFAULT_DOMAINS)
    written = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if written != [OPSET]:
        said = f"is of opset {written}; NVIDIA's own exports are of {OPSET}"
        yield Violation('', '', 'opset', said, WARNING)


def _names(side: str, names: list[str], wanted: tuple[str, ...]) -> Iterator[Violation]:
    for name in [name for name in wanted if name not in names]:
        said = f'has no {side} {name!r}, which the C++ looks up; there are {", ".join(names)}'
        yield Violation('', name, 'name', said)
    for name in [name for name in names if name not in wanted]:
        yield Violation('', name, 'name', f'has an {side} {name!r} that the C++ binds nothing to')
    if sorted(names) == sorted(wanted) and tuple(names) != wanted:
        said = f'{side}s are {", ".join(names)}; the C++ binds by name, what binds by place would mix them up'
        yield Violation('', '', 'order', said, WARNING)


def _types(value: onnx.ValueInfoProto) -> Iterator[Violation]:
    import onnx

    from mmdeploy_ext.graph.io.types import type_name

    kind, kinds = value.type.tensor_type.elem_type, onnx.TensorProto
    if kind == kinds.FLOAT16:
        said = f'{value.name} is float16; the ONNX files are float32, and the engine is built with fp16:chw'
        yield Violation('', value.name, 'type', said, WARNING)
    elif kind != kinds.FLOAT:
        yield Violation('', value.name, 'type', f'{value.name} is {type_name(kind)}, expected FLOAT')
    if None in shape_of(value) or not shape_of(value):
        said = f'{value.name} has axes that are not fixed; the C++ reads every size from the engine'
        yield Violation('', value.name, 'dynamic', said)


def _nodes(model: onnx.ModelProto, standard: tuple[str, ...]) -> Iterator[Violation]:
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.domain in standard:
            continue
        if (node.domain, node.op_type) != ('nv', PLUGIN):
            said = f'{node.name}: {node.domain}::{node.op_type} is no operator of ONNX or of this engine'
            yield Violation('', '', 'operator', said)
            continue
        yield from _plugin(node)
    weights = made.get('camera_depth_weights')
    if weights is not None and weights.op_type == 'Softmax':
        axis = next((entry.i for entry in weights.attribute if entry.name == 'axis'), -1)
        if axis not in (1, -3):
            said = f'the Softmax of camera_depth_weights is over axis {axis}, expected 1: the bins of depth'
            yield Violation('', 'camera_depth_weights', 'axes', said)


def _plugin(node: onnx.NodeProto) -> Iterator[Violation]:
    import onnx

    said = f'{node.name}: {PLUGIN} needs the plug-in of that name when the engine is built'
    yield Violation('', '', 'plug-in', said, WARNING)
    written = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    for name, value in PLUGIN_ATTRIBUTES.items():
        if name not in written or abs(written[name] - value) > 1e-9:
            said = f'{node.name}: {name} is {written.get(name)}, the plug-in computes with {value}'
            yield Violation('', name, 'attribute', said)
    if len(node.input) != 3:
        said = f'{node.name}: has {len(node.input)} inputs, expected x, weight, bias'
        yield Violation('', '', 'attribute', said)


CONTRACTS = {'cuda-bevfusion': check}
"""Contracts of folders that this family knows, for `graph.py check-folder`."""
FILES = {'cuda-bevfusion': tuple(f'{name}.onnx' for name in (*BOUND, *SPARSE))}
"""By which a folder is known to be of a contract."""
TABLES = {'cuda-bevfusion': write_tables}
"""What its consumers need of a rig, for `graph.py write-tables`."""
