"""What the node tensorrt_bevformer would reject or read wrongly in a folder: its graph and its parameters.

Source: autowarefoundation/autoware_universe, autoware_tensorrt_bevformer (bevformer_node.cpp@0d02fce,
bevformer_inference_engine.cpp@7e68106, its plug-ins@c1fe1b8): facts, no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.file_rules import Bound, bind_by_name, fixed_rules, read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    cuboid,
    key_rules,
    missing_files,
    read_parameters,
    valid_values,
)
from mmdeploy_ext.consumers.autoware.trial import LOAD, trial_rules
from mmdeploy_ext.consumers.bev_plugins import ATTENTION, ROTATE
from mmdeploy_ext.consumers.export_records import (
    OF_EXPORT,
    class_order_rules,
    is_same,
    record_of,
    recorded_value,
    value_rules,
)
from mmdeploy_ext.consumers.graph_tensors import graph_tensors
from mmdeploy_ext.contract.schema import COUNT, FLAG, NAME, PIXELS, POSITIVE, exactly, items, number
from mmdeploy_ext.core.violations import WARNING, Violation, errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx

GRAPH = 'bevformer_node'
"""Name of the file without `.onnx`, that of the node's launch file; a launch file may state another."""
MANIFEST = 'bevformer.param.yaml'
"""File name of the parameters."""
PATTERNS = (f'{GRAPH}.onnx',)
"""Patterns of files by which a folder of this node is recognised, beside the parameters."""
CAMERAS = 6
"""Cameras that the node subscribes to."""
KEYS = dict(
    data_params=dict(
        CAM_NUM=number(CAMERAS, CAMERAS, integer=True),
        input_width=PIXELS,
        input_height=PIXELS,
        mean=exactly(3, number()),
        std=exactly(3, POSITIVE),
        to_rgb=FLAG,
        pad_divisor=COUNT,
        scale_factor=POSITIVE,
    ),
    model_params=dict(
        batch_size=number(1, 1, integer=True),
        bev_h=COUNT,
        bev_w=COUNT,
        nb_dec=COUNT,
        dim=COUNT,
        num_query=COUNT,
        num_classes=COUNT,
        code_size=number(10, 10, integer=True),
    ),
    post_process_params=dict(
        score_thre=number(0, 1),
        has_twist=FLAG,
        class_names=items(NAME, 1),
        pc_range=cuboid,
        post_center_range=cuboid,
    ),
)
"""Group of parameters -> key -> check of its value."""
DEFAULTS = 'the node takes its own default, that of bevformer_small'
"""What becomes of a parameter that is missing."""
REALS = ('mean', 'std', 'scale_factor', 'score_thre', 'pc_range', 'post_center_range')
"""Keys that the node declares as floating point."""
PLUGINS = tuple(f'{name}{layout}' for name in (ROTATE, ATTENTION) for layout in ('', '2'))
PLUGINS += ('ModulatedDeformableConv2dTRT', 'ModulatedDeformableConv2dTRT2')
"""Plug-ins of the node's library; those that end in 2 have another layout in float16."""
ATTENTION_INPUTS = 5
"""Inputs of the attention plug-in: the maps' values, their shapes, reference points, offsets and logits."""
OF_QUATERNION = frozenset({4, 5, 6})
"""Entries of `can_bus` that hold x, y, z of the orientation in the node and w in BEVFormer's data set."""


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of those of its two files that are there.

    Shapes are compared with the parameters, as far as these are valid. An input that the node does not feed
    is a violation, a further output is none if its axes are fixed. A missing parameter is one, too,
    although the node has a default. Without an error so far a graph without plug-ins is loaded in ONNX
    Runtime, and run on zeros unless it is large (`trial.MOST_FLOPS`). ModelFileError: PyYAML is not
    installed.
    """
    file = f'{GRAPH}.onnx'
    paths = {name: folder / name for name in (file, MANIFEST) if (folder / name).is_file()}
    violations = missing_files((file, MANIFEST), paths)
    valid: dict[str, Any] = {}
    if MANIFEST in paths:
        values, unreadable = read_parameters(paths[MANIFEST])
        violations += unreadable
        for group, keys in KEYS.items() if not unreadable else ():
            entries, prefix = values.get(group), f'{group}.'
            entries = entries if isinstance(entries, dict) else {}
            wrong = list(key_rules(MANIFEST, entries, keys, REALS, prefix, DEFAULTS))
            violations += wrong
            valid |= valid_values(entries, keys, wrong, prefix)
        classes, count = valid.get('class_names'), valid.get('num_classes')
        if classes and count and len(classes) != count:
            message = f'post_process_params.class_names has {len(classes)} names for {count} classes'
            violations.append(Violation(MANIFEST, 'post_process_params.class_names', 'value', message))
    if file in paths:
        graph, unreadable = read_graph(paths[file])
        violations += unreadable
        if graph is not None and not unreadable:
            violations += [*_graph_rules(file, graph, valid), *_export_rules(file, record_of(graph), valid)]
            if not errors(violations):
                violations += trial_rules([(paths[file], graph, LOAD)])
    return violations, paths


def _export_rules(file: str, record: Mapping[str, Any], valid: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield parameters that are not those of the export of the graph, by the `record` in it."""
    pixels = {key: recorded_value(record, 'preprocess', key) for key in ('mean', 'std', 'to_rgb')}
    yield from value_rules(MANIFEST, valid, pixels, file, 'data_params.')
    prefix, extent = 'post_process_params.', recorded_value(record, 'postprocess', 'extent')
    if 'pc_range' in valid and extent is not None:
        cloud = valid['pc_range']
        if not is_same([cloud[3] - cloud[0], cloud[4] - cloud[1]], extent):
            message = f'{prefix}pc_range is {cloud}; the map of {file} has sides of {extent} m'
            yield Violation(MANIFEST, f'{prefix}pc_range', OF_EXPORT, message)
    names, expected = valid.get('class_names', []), recorded_value(record, 'classes')
    yield from class_order_rules(MANIFEST, names, expected, file, prefix)


def _graph_rules(file: str, graph: onnx.ModelProto, valid: Mapping[str, Any]) -> Iterator[Violation]:
    tensors = graph_tensors(graph)
    cells = valid['bev_h'] * valid['bev_w'] if {'bev_h', 'bev_w'} <= valid.keys() else None
    size = _input_size(valid)
    view = (cells, 1, valid.get('dim'))
    rows = valid.get('nb_dec'), 1, valid.get('num_query')
    inputs = [
        Bound('image', (1, CAMERAS, 3, *size)),
        Bound('prev_bev', view),
        Bound('use_prev_bev', (1,)),
        Bound('can_bus', (18,)),
        Bound('lidar2img', (1, CAMERAS, 4, 4)),
    ]
    outputs = [
        Bound('bev_embed', view),
        Bound('outputs_classes', (*rows, valid.get('num_classes'))),
        Bound('outputs_coords', (*rows, 10)),
    ]
    consequence = 'which the node looks up by name'
    yield from bind_by_name(file, tensors, inputs, outputs, exact=False, consequence=consequence)
    yield from fixed_rules(file, tensors)
    yield from _plugin_rules(file, graph)
    yield from _orientation_rules(file, graph)


def _input_size(valid: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return height and width of the resized and padded pictures; None, None if a parameter is not valid.

    As in the node, a resized side is cut off to whole pixels, then padded to a multiple of `pad_divisor`.
    """
    if not {'scale_factor', 'pad_divisor', 'input_height', 'input_width'} <= valid.keys():
        return None, None
    divisor = valid['pad_divisor']
    sides = (int(valid[f'input_{side}'] * valid['scale_factor']) for side in ('height', 'width'))
    return tuple(-(-side // divisor) * divisor for side in sides)


def _plugin_rules(file: str, graph: onnx.ModelProto) -> Iterator[Violation]:
    """Yield operators without a plug-in of the node, and attention of other inputs than its plug-in takes."""
    from onnx import TensorProto

    from mmdeploy_ext.graph.io import types
    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_nodes

    plugin_nodes = [node for node in all_nodes(graph) if node.domain not in DEFAULT_DOMAINS]
    inferred = types.infer(graph) if plugin_nodes else {}
    for node in plugin_nodes:
        title = f'{file}: {node.name or node.op_type}'
        if node.op_type not in PLUGINS:
            message = f'{title} is {node.op_type}; the plug-ins that the node loads: {", ".join(PLUGINS)}'
            yield Violation(file, node.name, 'operator', message)
            continue
        if not node.op_type.startswith(ATTENTION):
            continue
        if len(node.input) != ATTENTION_INPUTS:
            message = f'{title} has {len(node.input)} inputs, the plug-in has {ATTENTION_INPUTS}'
            yield Violation(file, node.name, 'count', message)
            continue
        shapes = inferred.get(node.input[1])
        if shapes is not None and shapes.tensor_type.elem_type != TensorProto.INT64:
            message = f'{title}: spatial_shapes are not INT64; for other types the plug-in has a null pointer'
            yield Violation(file, node.name, 'type', message)


def read_entries(graph: onnx.ModelProto) -> set[int]:
    """Return which entries of `can_bus` (18,), 0 to 17, a graph reads, also in the bodies of its nodes.

    A Gather with constant indices reads those entries, any other node that takes `can_bus` reads all of them.
    """
    from onnx import numpy_helper

    from mmdeploy_ext.graph.io.index import all_nodes, constant_value

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    nodes = list(all_nodes(graph))
    for node in nodes:
        if (value := constant_value(node)) is not None:
            constants[node.output[0]] = value
    entries: set[int] = set()
    for node in nodes:
        if 'can_bus' in node.input:
            is_gather = node.op_type == 'Gather' and node.input[0] == 'can_bus'
            index = constants.get(node.input[1]) if is_gather else None
            entries |= set(range(18) if index is None else (index.reshape(-1) % 18).tolist())  # -1 is 17
    return entries


def _orientation_rules(file: str, graph: onnx.ModelProto) -> Iterator[Violation]:
    """Yield the violation of a graph that reads another orientation than its metadata state for its training.

    They have `can_bus_orientation` 'wwww' or 'wxyz', see `bev_motion.ORIENTATIONS`; files of other programs
    have none.
    """
    import json

    from mmdeploy_ext.contract.metadata import PREFIX

    text = next((entry.value for entry in graph.metadata_props if entry.key == f'{PREFIX}postprocess'), '{}')
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):  # whoever wrote the file
        facts = None
    if not isinstance(facts, dict) or facts.get('can_bus_orientation', '') not in ('', 'wwww', 'wxyz'):
        message = f'{file}: {PREFIX}postprocess of its metadata is damaged; export it again'
        yield Violation(file, '', 'metadata', message)
        return
    stated = facts.get('can_bus_orientation', '')
    reads = bool(read_entries(graph) & OF_QUATERNION)
    fed = 'the node feeds w, x, y, z of the orientation at 3 to 6 of can_bus'
    if stated == 'wwww' and reads:
        message = f'{file}: {fed}, and the graph reads all of them; it was trained with w four times'
        yield Violation(file, 'can_bus', 'orientation', f'{message}: export it with --contract autoware')
    elif stated == 'wxyz' and not reads:
        message = f'{file}: was trained with w, x, y, z at 3 to 6 of can_bus, and reads w alone'
        yield Violation(file, 'can_bus', 'orientation', message)
    elif not stated and reads:
        message = (
            f"{file}: {fed}; BEVFormer's own data set has w four times: was the model trained with those?"
        )
        yield Violation(file, 'can_bus', 'orientation', message, WARNING)
