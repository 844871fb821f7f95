"""Rules of `bevdet.yaml`, the settings of bevdet_vendor, against the file that they go with.

Source: autowarefoundation/bevdet_vendor src/bevdet.cpp (keys and computations; facts, no code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm2onnx_driving.folder_rules import graph_tensors, is_same, node_cells, recorded
from mm2onnx_driving.plugins.bevdet_kernels import POOL_FIRST, PREPROCESS, network_size
from mmdeploy_ext.base.errors import one_line, shortened
from mmdeploy_ext.base.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

TUNED = ('max_per_img', 'post_max_size', 'score_threshold', 'nms_thr', 'nms_rescale_factor')
"""Entries of `test_cfg`, which may be changed on purpose."""


def settings_rules(path: Path, model: onnx.ModelProto) -> Iterator[Violation]:
    """Yield the violations of a file of settings by the graph and its metadata."""
    import yaml

    file = path.name
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield Violation(file, '', 'manifest', f'{file}: is not YAML: {one_line(error)}')
        return
    for key, expected, source in _stated(model):
        value = _entry(content, key)
        if value is None:
            yield Violation(file, key, 'key', f'{file}: {key} is missing; the program needs it')
        elif not is_same(value, expected):
            text = f'{file}: {key} is {shortened(value)}; {source} has {shortened(expected)}'
            yield Violation(file, key, 'export', text, *[WARNING] * (key.rpartition('.')[2] in TUNED))
    yield from _grid_rules(file, content, model)


def _stated(model: onnx.ModelProto) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, its source) of a file."""
    shapes, attributes = graph_tensors(model).shapes, _attributes(model)
    graph = 'the graph'
    yield 'use_depth', True, graph
    yield 'use_adj', True, graph
    yield 'model.common_head.names', ['reg', 'height', 'dim', 'rot', 'vel'], graph
    yield 'model.common_head.channels', [2, 1, 3, 2, 2], graph
    if len(shapes.get('images', ())) == 4 and None not in shapes['images']:
        cameras, _, height, width = shapes['images']
        yield 'data_config.Ncams', cameras, graph
        yield 'data_config.src_size', [height, 4 * width], graph
        if {'crop_h', 'crop_w', 'resize_radio'} <= attributes.keys():
            crop, scale = [attributes['crop_h'], attributes['crop_w']], attributes['resize_radio']
            sizes = zip((height, 4 * width), crop, strict=True)
            yield 'data_config.crop', crop, graph
            yield 'data_config.input_size', [network_size(*axis, scale) for axis in sizes], graph
    for key, tensor, axis in (
        ('adj_num', 'adj_feats', 1),
        ('model.bevpool_channels', 'adj_feats', 2),
        ('transform_size', 'transforms', 2),
        ('cam_params_size', 'cam_params', 2),
    ):
        if len(shapes.get(tensor, ())) > axis and shapes[tensor][axis] is not None:
            yield key, shapes[tensor][axis], graph
    maps = [shapes[name] for name in sorted(shapes, key=lambda name: (len(name), name)) if 'heatmap_' in name]
    yield 'model.tasks.num_class', [shape[1] for shape in maps if len(shape) > 1], graph
    facts, rule = recorded(model, 'postprocess'), recorded(model, 'preprocess')
    if not facts or not rule:
        return
    source, tasks = 'its export', []
    for count in facts['num_classes']:
        tasks.append(recorded(model, 'classes')[sum(map(len, tasks)) :][:count])
    limits = facts['nms_thr'] if isinstance(facts['nms_thr'], list) else [facts['nms_thr']]
    yield 'mean', rule['mean'], source
    yield 'std', rule['std'], source
    yield 'data_config.cams', rule['cameras'], source
    yield 'model.down_sample', rule['size'][0] // len(facts['rows']), source
    yield 'model.tasks.class_names', tasks, source
    yield 'test_cfg.max_per_img', facts['max_num'], source
    yield 'test_cfg.post_max_size', facts['post_max_size'], source
    yield 'test_cfg.score_threshold', facts['score_threshold'], source
    yield 'test_cfg.nms_thr', limits, source
    yield 'test_cfg.nms_rescale_factor', facts['nms_scale'], source


def _grid_rules(file: str, content: Any, model: onnx.ModelProto) -> Iterator[Violation]:
    facts, attributes = recorded(model, 'postprocess') or {}, _attributes(model)
    counts, starts = dict(x=attributes.get('bev_w'), y=attributes.get('bev_h'), z=1, depth=None), {}
    if facts:
        first, second = facts['depths'][:2]
        starts = dict(zip('xyz', zip(facts['grid_low'], facts['grid_step'], strict=True), strict=True))
        starts['depth'], counts['depth'] = (first, second - first), len(facts['depths'])
    for axis, count in counts.items():
        key = f'grid_config.{axis}'
        value = _entry(content, key)
        try:
            low, high, step = map(float, value)
            cells = node_cells(low, high, step)
        except (TypeError, ValueError, ArithmeticError):
            text = f'{file}: {key} is {shortened(value)}, expected lower, upper and step in metres'
            yield Violation(file, key, 'value', text)
            continue
        if count and cells != count:
            text = (
                f"{file}: {key} {shortened(value)} gives {cells} steps in the program's float32 "
                f'division; the file has {count}'
            )
            yield Violation(file, key, 'grid', text)
        elif axis in starts and not is_same([low, step], starts[axis]):
            text = (
                f'{file}: {key} starts at {low:g} in steps of {step:g}; the exported model has {starts[axis]}'
            )
            yield Violation(file, key, 'export', text)


def _attributes(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the attributes of the plug-ins of pictures and of pooling."""
    from mmdeploy_ext.graphs.io.index import node_attributes

    nodes = [node for node in model.graph.node if node.op_type in (PREPROCESS, POOL_FIRST)]
    return {name: value for node in nodes for name, value in node_attributes(node).items()}


def _entry(content: Any, key: str) -> Any:
    """Return an entry by dotted keys, of a list the entries of its rows, or None."""
    for word in key.split('.'):
        if isinstance(content, list):
            content = [row.get(word) if isinstance(row, dict) else None for row in content]
        else:
            content = content.get(word) if isinstance(content, dict) else None
    return content
