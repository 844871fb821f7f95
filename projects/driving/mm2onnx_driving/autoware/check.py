"""Checks of a folder against a node of Autoware, by the table in `nodes.py`."""

from __future__ import annotations

import inspect
import math
import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mm2onnx_driving.autoware.contract import (
    ParameterFileError,
    in_words_of,
    read_json,
    read_parameters,
    word_of,
)
from mm2onnx_driving.autoware.nodes import NODES, REMAPPER_KEYS
from mm2onnx_driving.autoware.trial import trial_rules
from mm2onnx_driving.folder_rules import (
    expected_shape,
    fits,
    graph_tensors,
    is_same,
    mixture_rules,
    node_cells,
    recorded,
    shape_text,
    weight_rules,
)
from mm2onnx_driving.plugin_bevdet import POOL_FIRST, PREPROCESS, network_size
from mmdeploy_ext.base.errors import ModelFileError, one_line, shortened
from mmdeploy_ext.base.violations import NOTE, WARNING, Violation, errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx

    from mm2onnx_driving.autoware.nodes import Change, GraphFile, Node, Tensor, Value
    from mm2onnx_driving.folder_rules import GraphTensors


# Rules of `bevdet.yaml`, the settings of bevdet_vendor, against the file that they go with.
#
# Source: autowarefoundation/bevdet_vendor src/bevdet.cpp (keys and computations; facts, no code).


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


IN_WORDS = 'class_names', 'class_mapping'
"""Ends of the keys of class names in the node's words."""
PATTERNS = tuple(dict.fromkeys(pattern for node in NODES for pattern in node.patterns))
"""Patterns of files by which a folder is recognised."""


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of the node's files."""
    folder = Path(folder)
    if not folder.is_dir():
        got = 'is a file' if folder.exists() else 'no such folder'
        raise ModelFileError(f'{folder}: {got}; expected a folder that a node of Autoware loads')
    nodes = [node for node in NODES if any(path for text in node.patterns for path in folder.glob(text))]
    if len({node.name for node in nodes}) != 1:
        got = ' and '.join(sorted({node.name for node in nodes}))
        raise ModelFileError(
            f'{folder}: {f"has files of {got}" if got else "has no file that a node would load"}; expected '
            f'those of one: {"; ".join(f"{node.name}: {node.manifest}" for node in NODES)}'
        )

    def is_there(node: Node) -> bool:
        return any((folder / f'{name}.onnx').is_file() for name in node.graphs)

    manifests = [node for node in nodes if (folder / node.manifest).is_file()]
    return check_node(next(filter(is_there, nodes), (*manifests, *nodes)[0]), folder)


def check_node(node: Node, folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    values, paths, violations = _files(node, folder)
    sizes, models = sizes_of(node, values), {}
    for file in node.files:
        path = paths.get(values.get(file.path_key, f'{file.name}.onnx'))
        model, wrong = (None, []) if path is None else _read_graph(path)
        violations += wrong
        if model is not None:
            models[file.name] = path, model
            violations += _graph_rules(node, file, path.name, model, sizes)
    violations += _handover_rules(node, {name: graph_tensors(model) for name, (_, model) in models.items()})
    by_file = {path.name: model for path, model in models.values()}
    for name, model in by_file.items():
        if (contract := recorded(model, 'options.contract')) not in (None, 'autoware'):
            text = f'{name} was exported with --contract {contract}; the node needs --contract autoware'
            violations.append(Violation(name, '', 'contract', text))
    violations += mixture_rules(by_file)
    violations += _export_rules(node, values, by_file)
    if node.settings:
        path = _settings_file(node, folder, values.get('model_config', ''))
        if path.is_file():
            paths[path.name] = path
            for model in by_file.values():
                violations += settings_rules(path, model)
        else:
            violations.append(_missing(path.name, ', by model_config:= of the launch file'))
    if not errors(violations):
        trials = [
            (models[file.name][0], file.has_boxes)
            for file in node.files
            if _is_standard(models[file.name][1])
        ]
        violations += trial_rules(trials) if trials else []
    return violations, {path.name: path for path in paths.values()}


def _is_standard(model: onnx.ModelProto) -> bool:
    from mmdeploy_ext.graphs.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graphs.io.index import all_nodes

    return all(node.domain in DEFAULT_DOMAINS for node in all_nodes(model))


def _export_rules(
    node: Node, values: Mapping[str, Any], models: Mapping[str, onnx.ModelProto]
) -> Iterator[Violation]:
    for key, entry in node.exported.items():
        stated: dict[str, tuple[str, Any]] = {}
        for graph, model in models.items():
            expected = recorded(model, entry)
            stated.setdefault(repr(expected), (graph, expected))
        for graph, expected in stated.values():
            if expected is None or key not in values:
                continue
            value = values[key]
            if entry == 'classes':
                yield from _label_rules(node, key, value, graph, expected)
            elif not is_same(value, expected):
                message = f'{key} is {value}; {graph} was exported with {expected}'
                yield Violation(node.manifest, key, 'export', message)


def _label_rules(
    node: Node, key: str, names: Sequence[str], graph: str, classes: Sequence[str]
) -> Iterator[Violation]:
    has_words = node.classes and key.endswith(IN_WORDS)
    expected = in_words_of(node.classes, classes)[0] if has_words else list(classes)
    if list(names) != expected and sorted(names) == sorted(expected):
        message = f'{key} are {", ".join(names)}; the labels of {graph} are in another order: '
        yield Violation(node.manifest, key, 'export', message + ', '.join(expected))
        return
    for label, (name, stated) in enumerate(zip(names, expected, strict=False)):
        if name != stated and (stated in node.classes or name in expected):
            message = (
                f'{key}[{label}] is {name}; that label of {graph} is {stated}; ignore this if you '
                'renamed it on purpose'
            )
            yield Violation(node.manifest, key, 'export', message, WARNING)


def _files(node: Node, folder: Path) -> tuple[dict[str, Any], dict[str, Path], list[Violation]]:
    paths, values, violations = {}, {}, []
    if (folder / node.manifest).is_file():
        paths[node.manifest] = folder / node.manifest
        values, violations = read_manifest(node, folder)
    else:
        violations.append(_missing(node.manifest, _older_layout(folder)))
        if node.files[0].path_key:  # without the manifest no file is known
            return values, paths, violations
    names = [values.get(file.path_key, f'{file.name}.onnx') for file in node.files]
    remapper = values.get(node.remapper, node.remapper)
    for name in (*names, *filter(None, [remapper])):
        if os.path.isfile(folder / name):
            paths[name] = folder / name
        elif name == node.remapper or name.removesuffix('.onnx') in node.graphs:
            violations.append(_missing(name))
    if remapper in paths:
        violations += _parameters(paths[remapper], REMAPPER_KEYS)[1]
    return values, paths, violations


def _settings_file(node: Node, folder: Path, stated: str) -> Path:
    if stated and not stated.startswith('$('):
        return folder / stated
    expected = folder / node.settings
    others = [path for path in folder.glob(f'{expected.stem}*.yaml') if path.name != node.manifest]
    return others[0] if len(others) == 1 else expected


def _missing(name: str, note: str = '') -> Violation:
    return Violation(
        name, '', 'missing-file', f'{name} is missing; the node gets its path as a parameter{note}'
    )


def _older_layout(folder: Path) -> str:
    older = sorted(path.name for path in folder.glob('*_ml_package.param.yaml'))
    return f'; {", ".join(older)} has the layout before manifest v4.1' if older else ''


# ---- manifest


def read_manifest(node: Node, folder: Path) -> tuple[dict[str, Any], list[Violation]]:
    """Return parameter -> value of valid parameters, and the violations of the others."""
    values, violations = _parameters(folder / node.manifest, node.keys)
    for key in [key for key in values if node.variables and key.rpartition('.')[2] in PATHS]:
        values[key], problem = _launched(node, values[key])
        if problem:
            text = f'{key} is {shortened(values[key])}: {problem}'
            violations.append(Violation(node.manifest, key, 'path', text))
    model_file = folder / values.get('model_param_path', node.model_manifest)
    if node.model_keys and model_file.is_file():
        found, wrong = _parameters(model_file, node.model_keys)
        values, violations = values | found, violations + wrong
    everything = dict(values)
    by_last_word = {name.rpartition('.')[2]: name for name in (*node.model_keys, *node.keys)}
    for rule in node.rules:
        for wrong in _called(rule, values) or ():
            first, dot, rest = wrong.key.partition('.')
            name = f'{by_last_word[first]}{dot}{rest}'
            violations.append(
                Violation(node.manifest, name, wrong.rule, f'{name} {wrong.text}', wrong.severity)
            )
            if wrong.severity != WARNING:
                everything.pop(name, None)
    for name, names in values.items():
        if name.endswith(IN_WORDS) and node.classes:
            violations += _class_rules(node, name, names)
    violations += _path_rules(node, folder, values)
    return everything, violations


def _parameters(path: Path, keys: Mapping[str, Value]) -> tuple[dict[str, Any], list[Violation]]:
    file = path.name
    try:
        content = read_json(path) if path.suffix == '.json' else read_parameters(path)
    except ParameterFileError as error:
        return {}, [Violation(file, '', 'manifest', f'{file}: {error}')]
    values, wrong, warned = {}, {}, []
    for name, expected in keys.items():
        value, missing = _lookup(content, name)
        if missing and expected.is_optional:
            continue
        if missing and expected.since:
            text = f'{missing} is missing; since {expected.since} the node has no default for it'
            warned.append(
                Violation(file, missing, 'version', f'{text}; older nodes accept the file', WARNING)
            )
            continue
        if missing:
            wrong[missing] = 'key', f'{missing} is missing; the node has no default for it'
            continue
        rule, text = expected.problem(value)
        if rule:
            wrong[name] = rule, f'{name} is {shortened(value)}, expected {text}'
        else:
            values[name] = value
    found = [Violation(file, name, rule, text) for name, (rule, text) in wrong.items()]
    return values, found + warned


PATHS = ('onnx_path', 'engine_path', 'model_config', 'model_param_path')
"""Parameters of `Node.variables`."""
FOLDER = '$(var model_path)'


def _launched(node: Node, path: str) -> tuple[str, str]:
    """Return a path relative to the folder, and a problem or ''."""
    if not path.startswith('$('):
        place = f'{FOLDER}/{PurePath(path).name}'
        return path, f"the node looks for it in its own working folder; write '{place}'"
    for name, value in node.variables.items():
        path = path.replace(f'$(var {name})', value)
    return str(PurePath(path)), ''


def _lookup(content: Mapping[str, Any], name: str) -> tuple[Any, str]:
    value: Any = content
    words = name.split('.')
    for count, word in enumerate(words, 1):
        if not isinstance(value, dict) or word not in value:
            return None, '.'.join(words[:count])
        value = value[word]
    return value, ''


def _by_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the last word of their names, and by the last two."""
    words = {name: name.split('.') for name in values}
    return {'_'.join(words[name][-count:]): values[name] for count in (2, 1) for name in values}


def _called(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    by_word = _by_words(values)
    names = list(inspect.signature(function).parameters)
    return function(*(by_word[name] for name in names)) if by_word.keys() >= set(names) else None


def sizes_of(node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    sizes = _by_words(values)
    for name, function in node.sizes.items():
        size = _called(function, sizes)
        if size is not None:
            sizes[name] = size
    return sizes


def _class_rules(node: Node, key: str, names: list[str]) -> Iterator[Violation]:
    text = 'which the node publishes as UNKNOWN'
    for name in names:
        word = word_of(name, node.classes)
        if word not in ('', name):
            yield Violation(node.manifest, key, 'class', f'{key} has {name}, {text}; write {word}')
    if unknown := [shortened(name) for name in names if not word_of(name, node.classes)]:
        text = f'{key} has {", ".join(unknown)}, {text}; it supports {", ".join(node.classes)}'
        yield Violation(node.manifest, key, 'class', text, WARNING)


def _path_rules(node: Node, folder: Path, values: Mapping[str, Any]) -> Iterator[Violation]:
    earlier: dict[PurePath, str] = {}
    for key, text in values.items():
        if not key.endswith('_path') or text.startswith('$('):
            continue
        path, is_read = PurePath(text), not key.endswith('engine_path')
        problem = ''
        if path.is_absolute() or '..' in path.parts:
            problem = 'it is outside of the folder, which must contain all files of the model'
        elif is_read and not os.path.isfile(folder / path):
            problem = 'no such file; the path is relative to this folder'
        elif path in earlier:
            problem = f'that is the file of {earlier[path]}'
        earlier[path] = key
        if problem:
            yield Violation(node.manifest, key, 'path', f'{key} is {shortened(text)}: {problem}')


# ---- graphs


def _read_graph(path: Path) -> tuple[onnx.ModelProto | None, list[Violation]]:
    from onnx import checker, shape_inference

    from mmdeploy_ext.graphs.io.files import load

    file = path.name
    try:
        model = load(path)
    except ModelFileError as error:
        return None, [Violation(file, '', 'onnx', one_line(error).replace(str(path), file))]
    try:
        checker.check_model(model)
        if not _is_standard(model):  # ONNX Runtime loads the others
            shape_inference.infer_shapes(model, strict_mode=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        return model, [Violation(file, '', 'onnx', f'{file}: onnx.checker: {one_line(error)[:300]}')]
    return model, list(weight_rules(file, model))


def _graph_rules(
    node: Node, file: GraphFile, name: str, model: onnx.ModelProto, sizes: Mapping[str, Any]
) -> Iterator[Violation]:
    tensors = graph_tensors(model)
    if node.binds == 'index':
        bound = yield from _in_order(file, name, tensors)
    else:
        bound = yield from _by_name(node, file, name, tensors)
    for actual, tensor in bound:
        exactly = node.binds == 'exactly' and actual in tensors.inputs
        yield from _tensor_rules(name, actual, tensors, tensor, sizes, exactly)
    for actual, shape in tensors.shapes.items() if node.is_fixed else ():
        if None in shape:
            text = f'{name}: {actual} is {shape_text(shape)}; the node sets no sizes: export with fixed sizes'
            yield Violation(name, actual, 'dynamic', text)
    yield from _operator_rules(node, name, model)


def _in_order(
    file: GraphFile, name: str, tensors: GraphTensors
) -> Iterator[Violation] | list[tuple[str, Tensor]]:
    names, bound = [*tensors.inputs, *tensors.outputs], [*file.inputs, *file.outputs]
    if (len(tensors.inputs), len(tensors.outputs)) != (len(file.inputs), len(file.outputs)):
        text = (
            f'{name} has {len(tensors.inputs)} inputs and {len(tensors.outputs)} outputs; the node binds '
            f'{", ".join(tensor.name for tensor in bound)} by index'
        )
        yield Violation(name, '', 'count', text)
        return []
    customary = [tensor.name for tensor in bound]
    for actual, expected in zip(names, customary, strict=True):
        if actual != expected and actual in customary:
            text = f'{name}: {actual} is at the index of {expected}; the node binds by index'
            yield Violation(name, actual, 'order', text)
    return list(zip(names, bound, strict=True))


def _by_name(
    node: Node, file: GraphFile, name: str, tensors: GraphTensors
) -> Iterator[Violation] | list[tuple[str, Tensor]]:
    bound = []
    for side, expected, actual in (
        ('input', file.inputs, tensors.inputs),
        ('output', file.outputs, tensors.outputs),
    ):
        for tensor in expected:
            if tensor.name in actual:
                bound.append((tensor.name, tensor))
                continue
            text = f'{name} has no {side} {tensor.name!r}, which the node looks up by name; there are '
            yield Violation(name, tensor.name, 'name', text + (', '.join(actual) or 'none'))
        for other in actual.keys() - {tensor.name for tensor in expected}:
            if side == 'input' or node.binds == 'exactly':
                text = f'{name} has an unexpected {side} {other!r}, which the node does not bind'
                yield Violation(name, other, 'extra', text)
    return bound


def _tensor_rules(
    file: str, name: str, tensors: GraphTensors, tensor: Tensor, sizes: Mapping[str, Any], exactly: bool
) -> Iterator[Violation]:
    shape, elem_type = tensors.shapes[name], tensors.types[name]
    if elem_type not in tensor.types:
        text = (
            f'{file}: {name} is {elem_type}, expected {" or ".join(tensor.types)}; the node does not check '
        )
        yield Violation(file, name, 'type', f'{text}it{": " if tensor.note else ""}{tensor.note}')
    if tensor.axes == '*':
        return
    words, expected = tensor.axes.split(), expected_shape(tensor.axes, sizes)
    if not fits(shape, expected):
        text = f'{file}: {name} is {shape_text(shape)}, expected {shape_text(expected)}'
        yield Violation(file, name, 'shape', text)
    for axis, (word, size, size_of_node) in enumerate(zip(words, shape, expected, strict=False)):
        text = ''
        if exactly and word.startswith('+') and size is not None:
            text = 'is fixed, but the node uses a range of sizes: export it with a dynamic axis'
        elif exactly and not word.startswith('+') and size is None and size_of_node is not None:
            text = f'is dynamic, but the node uses {size_of_node}: export it with that size'
        if text:
            text = f'{file}: axis {axis} of {name} ({shape_text(shape)}) {text}'
            yield Violation(file, name, 'dynamic', text)


def _operator_rules(node: Node, file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from onnx import TensorProto

    from mmdeploy_ext.graphs.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graphs.io.index import all_nodes

    counts: dict[tuple[str, str, Change], list[bool]] = {}
    for entry in all_nodes(model):
        if entry.domain in DEFAULT_DOMAINS:
            continue
        title, operator = f'{file}: {entry.name or entry.op_type}', f'{entry.domain}::{entry.op_type}'
        if node.plugin_domain not in (None, entry.domain) or entry.op_type not in node.plugins:
            plugins = ', '.join(node.plugins) or 'none'
            text = f'{title} is {operator}, which is not a plug-in of the node; it loads {plugins}'
            yield Violation(file, entry.name, 'operator', text)
            continue
        attributes = {attribute.name for attribute in entry.attribute}
        for name, change in node.newer.get(entry.op_type, {}).items():
            counts.setdefault((entry.op_type, name, change), []).append(name in attributes)
        for name in node.plugins[entry.op_type]:
            if name not in attributes:
                text = f'{title} has no attribute {name}, which the plug-in {operator} requires'
                yield Violation(file, entry.name, 'attribute', text)
    for (operator, name, change), found in counts.items():
        for is_there in sorted(set(found)):
            text = (
                f'{file}: {found.count(is_there)} {operator} have {"" if is_there else "no "}{name}, of '
                f'{change.since}: {change.with_it if is_there else change.without}'
            )
            severity = NOTE if is_there == change.is_wanted else WARNING
            yield Violation(file, name, 'version', text, severity)
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        text = (
            f'{file} has float16 weights; use a float32 file, from which the node builds fp16 (trt_precision)'
        )
        yield Violation(file, '', 'precision', text, WARNING)


def _handover_rules(node: Node, tensors: Mapping[str, GraphTensors]) -> Iterator[Violation]:
    for source, output, target, name in node.handovers:
        given = tensors[source].outputs.get(output, ()) if source in tensors else ()
        taken = tensors[target].inputs.get(name, ()) if target in tensors else ()
        if given and taken and None not in (*given, *taken) and math.prod(given) != math.prod(taken):
            file = f'{target}.onnx'
            text = (
                f'{file}: {name} is {shape_text(taken)}, but {output} of {source}.onnx is {shape_text(given)}'
            )
            yield Violation(file, name, 'shape', text)
