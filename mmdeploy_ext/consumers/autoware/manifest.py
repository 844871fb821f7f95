"""Manifests of Autoware's perception nodes: ROS 2 parameter files, checked key by key and written.

They are compared with the metadata of the files beside them, too. Needs PyYAML.

Source: autowarefoundation/autoware_universe 5e12a711 and, for CenterPoint's manifest v4.1, 656cdab8: the
schemas, ObjectClassification.msg and what the nodes declare (names, types and ranges; facts, no code).
"""

from __future__ import annotations

import itertools
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.parameter_file import NO_TEXT, ParameterFileError, read_parameter_file
from mmdeploy_ext.consumers.export_records import (
    class_order_rules,
    distinct_records,
    mixture_rules,
    recorded_value,
    value_rules,
)
from mmdeploy_ext.contract.schema import Mismatch, either, exactly, items, number, one_of
from mmdeploy_ext.core.errors import ConfigError, shortened
from mmdeploy_ext.core.violations import WARNING, Violation, errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

    from mmdeploy_ext.contract.schema import Check

ANY_NODE, PARAMETERS = '/**', 'ros__parameters'
"""Keys above all parameters of a file."""
MODEL_PARAMS = 'model_params'
"""Key above the parameters of the model."""
MODEL_PREFIX = f'{MODEL_PARAMS}.'
"""Beginning of the names of these parameters in messages."""
NOT_REAL = 'holds whole numbers without a point, integers to ROS 2: the node throws; write 64.0, not 64'
"""End of the message about a whole number where the node wants a floating point one."""
METRES = number(-1e5, 1e5)
"""Check of a bound of a range, or of an area: no sensor sees a hundred kilometres."""
CELL_METRES = number(1e-3, 1e3)
"""Check of the side of a voxel, or of another step of a grid."""
WHOLE = 1e-3
"""Largest distance from a whole number of cells that counts as rounding."""
REMAPPER = 'detection_class_remapper.param.yaml'
"""Name of the file with the remapper, by which the node changes classes by the area of a box."""
REMAPPER_LABELS = 8
"""Labels of the remapper's matrices: UNKNOWN to PEDESTRIAN."""
REMAPPER_SIZES = REMAPPER_LABELS**2, 100
"""Entries of a matrix of the remapper: label x label, row by row; 10 x 10 since #12732."""
ALLOWED, SMALLEST, LARGEST = 'allow_remapping_by_area_matrix', 'min_area_matrix', 'max_area_matrix'
"""Keys of the remapper's matrices."""
OTHER_WORD = dict(MOTORBIKE='MOTORCYCLE', MOTORCYCLE='MOTORBIKE')
"""Each node has one of the two words for a motorcycle."""
MODEL_FOLDER = '$(var model_path)/'
"""Beginning of a path that a launch file replaces by the folder of the model."""


def read_parameters(path: Path) -> tuple[dict[str, Any], list[Violation]]:
    """Return the parameters of a file for all nodes, key -> value as ROS 2 reads it, and the violations.

    They are those below `ANY_NODE` and `PARAMETERS`. If it has no such keys, or cannot be read, they are {}
    and one violation. ModelFileError: PyYAML is not installed.
    """
    try:
        content = read_parameter_file(path)
    except ParameterFileError as error:
        return {}, [Violation(path.name, '', 'manifest', f'{path.name}: {error}')]
    if not isinstance(content, dict) or ANY_NODE not in content:
        got = ', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        message = f'{path.name} begins with {got}, expected {ANY_NODE!r}: the parameters reach no node'
        return {}, [Violation(path.name, '', 'manifest', message)]
    nodes = content[ANY_NODE]
    if not isinstance(nodes, dict) or not isinstance(nodes.get(PARAMETERS), dict):
        message = f'{path.name} has no {PARAMETERS} below {ANY_NODE!r}; put all keys below it'
        return {}, [Violation(path.name, '', 'manifest', message)]
    return nodes[PARAMETERS], []


# ---- paths


def path_rules(
    file: str,
    folder: Path,
    values: Mapping[str, Any],
    keys: Sequence[str],
    prefix: str = '',
    folder_text: str = '',
) -> tuple[dict[str, Path], list[Violation]]:
    """Return the files of a folder that a node reads, by the keys of the manifest, and which paths are wrong.

    Args:
        file: name of the manifest.
        folder: folder that all paths are relative to.
        values: values of the manifest; keys that are missing, and values that are no text or empty, are left
            out.
        keys: keys of the manifest that hold paths.
        prefix: text before the keys in messages.
        folder_text: beginning of a path that stands for the folder: `MODEL_FOLDER` if a launch file replaces
            it.
    """
    paths: dict[str, Path] = {}
    violations = []
    for key, value in _path_texts(values, keys):
        name, relative = f'{prefix}{key}', value.removeprefix(folder_text)
        try:
            _check_inside(folder, relative)
            is_file = (folder / relative).is_file()
        except ValueError as error:
            violations.append(_wrong_path(file, name, f'{shortened(value)}: {error}'))
            continue
        except OSError as error:  # the name is too long
            violations.append(_wrong_path(file, name, f'{shortened(value)}: {error.strerror}'))
            continue
        if not is_file:
            problem = 'there is no such file; the path is relative to this folder'
            violations.append(_wrong_path(file, name, f'{shortened(value)}: {problem}'))
            continue
        path = folder / relative
        equal_keys = [earlier_key for earlier_key, earlier_path in paths.items() if path == earlier_path]
        violations += [_wrong_path(file, name, f'the file of {prefix}{equal}') for equal in equal_keys]
        paths[key] = path
    return paths, violations


def engine_rules(
    file: str, folder: Path, values: Mapping[str, Any], keys: Sequence[str], folder_text: str = ''
) -> Iterator[Violation]:
    """Yield the violations of the paths of engines, which a node writes.

    `file`, `folder`, `values`, `keys` and `folder_text` are those of `path_rules`.
    """
    engines: dict[str, Path] = {}
    for key, value in _path_texts(values, keys):
        relative = value.removeprefix(folder_text)
        try:
            _check_inside(folder, relative)
        except ValueError as error:
            yield _wrong_path(file, key, f'{shortened(value)}: {error}')
            continue
        engine = (folder / relative).resolve()
        if engine.suffix.lower() in ('.onnx', '.yaml'):
            problem = 'the node writes the engine there, over a file that it has to read'
            yield _wrong_path(file, key, f'{shortened(value)}: {problem}')
        for earlier_key, earlier_engine in engines.items():
            if engine == earlier_engine:
                problem = f'the file of {earlier_key}: one engine replaces the other'
                yield _wrong_path(file, key, f'{shortened(value)}, {problem}')
        engines[key] = engine


def _check_inside(folder: Path, value: str) -> None:
    """Raise ValueError for a path of a manifest that leads out of its folder, a link in it followed."""
    if '\0' in value:
        raise ValueError('a path holds no NUL')
    path = PurePath(value)
    inside = not path.is_absolute() and '..' not in path.parts
    try:
        inside = inside and (folder / path).resolve().is_relative_to(folder.resolve())
    except RuntimeError as error:
        raise ValueError('it is a link that leads back to itself') from error
    if not inside:
        raise ValueError('it leads out of the folder, which has to hold all files of the model')


def _path_texts(values: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the keys whose values are texts that are not empty, and the texts."""
    return [(key, values[key]) for key in keys if isinstance(values.get(key), str) and values[key]]


def _wrong_path(file: str, key: str, problem: str) -> Violation:
    return Violation(file, key, 'path', f'{key} is {problem}')


def missing_files(names: Sequence[str], existing: Collection[str]) -> list[Violation]:
    """Return a violation for each of the file names that is not in `existing`, the names of files there."""
    consequence = 'is not there; the node is given its path'
    return [
        Violation(name, '', 'missing-file', f'{name} {consequence}') for name in names if name not in existing
    ]


# ---- keys and values


def model_params(file: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Violation]]:
    """Return the parameters below `model_params`; {} and a violation if that is no dict of keys.

    `values` are those of the manifest with the name `file`.
    """
    model = values.get(MODEL_PARAMS)
    if isinstance(model, dict):
        return model, []
    got = 'not there' if model is None else repr(model)
    message = f'{MODEL_PARAMS} is {got}, expected keys below it'
    return {}, [Violation(file, MODEL_PARAMS, 'key', message)]


def key_rules(
    file: str,
    values: Mapping[str, Any],
    fields: Mapping[str, Check],
    reals: Sequence[str] = (),
    prefix: str = '',
    consequence: str = 'the node declares it without a default',
) -> Iterator[Violation]:
    """Yield a violation for each key that is missing or whose value a node would refuse.

    Args:
        file: name of the manifest.
        values: key -> value in the manifest.
        fields: required key -> check of its value.
        reals: keys that the node declares as floating point; as parameters of ROS 2 keep their type, it
            throws at whole numbers without a point.
        prefix: text before the keys in messages.
        consequence: what becomes of a key that is missing, for the message.
    """
    for key, check in fields.items():
        name = f'{prefix}{key}'
        if key not in values:
            yield Violation(file, name, 'key', f'{name} is not there; {consequence}')
            continue
        try:
            check(values[key], name)
        except Mismatch as error:
            yield Violation(file, name, 'value', str(error))
            continue
        if key in reals and not are_reals(values[key]):
            yield Violation(file, name, 'ros-type', f'{name} {NOT_REAL}')


def valid_values(
    values: Mapping[str, Any], fields: Iterable[str], violations: Sequence[Violation], prefix: str = ''
) -> dict[str, Any]:
    """Return key -> value of those of `fields` that are there without an error, for rules that join several.

    `violations` are those of the manifest so far, in which the keys begin with `prefix`.
    """
    wrong = {violation.attribute for violation in errors(violations)}
    return {key: values[key] for key in fields if key in values and f'{prefix}{key}' not in wrong}


def are_reals(value: Any) -> bool:
    """Return whether `value`, a number or a list of numbers, is what ROS 2 takes for floating point."""
    return all(isinstance(entry, float) for entry in (value if isinstance(value, list) else [value]))


def ascending(value: Any, name: str) -> None:
    """Check that `value` is a list of metres above 0, one or more, each larger than that before.

    `name` is that of the value, for the Mismatch that is raised otherwise.
    """
    items(METRES, 1)(value, name)
    if value[0] <= 0:
        raise Mismatch(
            f'{name} is {value}, expected distances above 0: nothing is nearer than {value[0]:g} m'
        )
    if any(later <= sooner for sooner, later in itertools.pairwise(value)):
        raise Mismatch(f'{name} is {value}, expected ascending numbers')


def cuboid(value: Any, name: str) -> None:
    """Check that `value` is six numbers: the lower corner and the upper one, in metres; see `ascending`."""
    exactly(6, METRES)(value, name)
    if any(low >= high for low, high in zip(value[:3], value[3:], strict=True)):
        raise Mismatch(f'{name} is {value}: a lower bound is not below its upper one')


def interval(value: Any, name: str) -> None:
    """Check that `value` is a lower bound, a larger upper bound and a step, in metres; see `ascending`."""
    exactly(3, METRES)(value, name)
    CELL_METRES(value[2], f'{name}[2]')
    if value[0] >= value[1]:
        raise Mismatch(f'{name} is {value}: expected lower below upper')


def value_differences(path: Path, expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each parameter of the file at a path that has another value than the expected one.

    Args:
        path: path of the file; one that cannot be read has no parameters.
        expected: name of a parameter -> value; dots separate the keys above it, which are not in the lines.
            One that is missing in the file is None.
    """
    parameters, _ = read_parameters(path)
    for name, value in expected.items():
        got: Any = parameters
        for key in name.split('.'):
            got = got.get(key) if isinstance(got, dict) else None
        if got != value:
            yield f'{path.name}: {name.rpartition(".")[2]} is {got}, expected {value}'


# ---- rules that several manifests share


def class_rules(
    file: str, names: Sequence[str], words: Sequence[str], key: str = f'{MODEL_PREFIX}class_names'
) -> Iterator[Violation]:
    """Yield the violations of class names that are no words of a node, which publishes them as UNKNOWN.

    An error for each that is a word but for its case or the word for a motorcycle; one warning of the others.

    Args:
        file: name of the manifest.
        names: the class names in it.
        words: all class names that the node knows.
        key: key of the names, for messages.
    """

    def message(texts: str) -> str:
        return f'{key} has {texts}, which the node publishes as UNKNOWN; it knows {", ".join(words)}'

    for name in names:
        if name not in words and (word := _word_of(name, words)):
            yield Violation(file, key, 'class', f'{message(repr(name))}: write {word}')
    if unknown := [repr(name) for name in names if not _word_of(name, words)]:
        yield Violation(file, key, 'class', message(', '.join(unknown)), WARNING)


def grid_rules(
    file: str, cloud: Sequence[float], size: Sequence[float], prefix: str = MODEL_PREFIX
) -> Iterator[Violation]:
    """Yield a violation for each axis of which the node's float32 quotient has other cells than the grid.

    That is its number of cells, rounded. Another axis whose number of cells is not whole is a warning.

    Args:
        file: name of the manifest.
        cloud: point_cloud_range: the lower corner x, y, z, then the upper one, in metres.
        size: voxel_size in metres, of x and y alone if the node has no cells along z.
        prefix: text before both keys in messages.
    """
    key = f'{prefix}point_cloud_range'
    for axis, low, high, step in zip('xyz', cloud[:3], cloud[3:], size, strict=False):
        exact, cells = (high - low) / step, node_cells(low, high, step)
        message = f'{key} is {exact:g} voxels of {step:g} m along {axis}'
        advice = f'; change the range or {prefix}voxel_size'
        if cells != round(exact):
            message += f', and {cells} by the float32 quotient of the node, cut off{advice}'
            yield Violation(file, key, 'grid', message)
        elif abs(exact - cells) > WHOLE:
            yield Violation(file, key, 'grid', f'{message}, no whole number{advice}', WARNING)


def node_cells(low: float, high: float, step: float) -> int:
    """Return how many cells of a step a node counts between two bounds: a float32 quotient, cut off.

    All three are in metres, the step above 0.

    Source: autoware_lidar_centerpoint centerpoint_config.hpp:95-102.
    """
    return int((np.float32(high) - np.float32(low)) / np.float32(step))


def remapper_rules(path: Path) -> Iterator[Violation]:
    """Yield the violations in the remapper of classes at a path: three matrices of label x label.

    They state which label becomes which, for boxes between two areas in m2.
    """

    def matrix(entry: Check) -> Check:
        return either(*(exactly(size, entry) for size in REMAPPER_SIZES))

    values, violations = read_parameters(path)
    fields = {ALLOWED: matrix(one_of(0, 1)), SMALLEST: matrix(METRES), LARGEST: matrix(METRES)}
    if not violations:
        matrices = {key: values.get(key) for key in fields}
        violations += key_rules(path.name, matrices, fields, (SMALLEST, LARGEST))
    yield from violations
    valid = valid_values(values, fields, violations)
    if len({len(entries) for entries in valid.values()}) > 1:
        message = ', '.join(f'{key} has {len(entries)} entries' for key, entries in valid.items())
        yield Violation(path.name, ALLOWED, 'value', message)
        return
    lower, upper = valid.get(SMALLEST, ()), valid.get(LARGEST, ())
    if any(low > high for low, high in zip(lower, upper, strict=False)):
        message = f'{SMALLEST} has an entry above that of {LARGEST}: nothing is remapped there'
        yield Violation(path.name, SMALLEST, 'value', message)


# ---- against the exports of the files beside it


def export_rules(
    file: str,
    models: Mapping[str, onnx.ModelProto],
    values: Mapping[str, Any],
    words: Sequence[str],
    grid: Sequence[str] = ('preprocess',),
    prefix: str = '',
) -> Iterator[Violation]:
    """Yield files of several exports, and values of the manifest that are not those of the files' exports.

    Compared are the `point_cloud_range` and `voxel_size` of metadata that have them, and `class_names`.

    Args:
        file: name of the manifest.
        models: name of a file that the manifest names -> its model.
        values: key -> valid value of the manifest.
        words: all class names that the node knows.
        grid: keys of the metadata, one inside the other, under which range and voxel size are.
        prefix: text before the keys in messages.
    """
    yield from mixture_rules(models)
    for graph, record in distinct_records(models):
        expected = {key: recorded_value(record, *grid, key) for key in ('point_cloud_range', 'voxel_size')}
        yield from value_rules(file, values, expected, graph, prefix)
        names, classes = values.get('class_names', []), record.get('classes')
        if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
            classes, _ = translate_classes(classes, words)
            yield from class_order_rules(file, names, classes, graph, prefix, words)


# ---- writing


def parameter_text(parameters: Mapping[str, Any]) -> str:
    """Return the text of a ROS 2 parameter file that gives all nodes these parameters, key -> value."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes texts such as y and 09, too, which are texts to PyYAML, but not to ROS 2."""

    Dumper.add_implicit_resolver('!no-text', NO_TEXT, None)
    content = {ANY_NODE: {PARAMETERS: dict(parameters)}}
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=100)


def remapper_text() -> str:
    """Return the text of a remapper that changes no class."""
    count = REMAPPER_LABELS**2
    return parameter_text({ALLOWED: [0] * count, SMALLEST: [0.0] * count, LARGEST: [0.0] * count})


def class_words(names: Sequence[str], words: Sequence[str], place: str) -> list[str]:
    """Return class names in a node's words: upper case, and its own word for motorcycles.

    `words` are all those that the node knows; `place` is the file and key of the names, for the message.

    Raises:
        ConfigError: a class that the node would publish as UNKNOWN.
    """
    translated, unknown = translate_classes(names, words)
    if unknown:
        raise ConfigError(
            f'{place} has {", ".join(unknown)}, which the node publishes as UNKNOWN; it knows '
            f'{", ".join(words)}: rename or leave out the classes'
        )
    return translated


def translate_classes(names: Sequence[str], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return class names in a node's words, see `class_words`, and the names for which it has no word.

    The first list has a word for each name, in upper case if the node has none; the second the names as they
    were given.
    """
    translated = [_word_of(name, words) or name.upper() for name in names]
    return translated, [name for name in names if not _word_of(name, words)]


def _word_of(name: str, words: Collection[str]) -> str:
    """Return a class name in the words of a node, '' if it has none for it."""
    upper = name.upper()
    return next((word for word in (upper, OTHER_WORD.get(upper, '')) if word in words), '')
