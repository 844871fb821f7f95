"""Manifests of Autoware's perception nodes: ROS 2 parameter files, read key by key. Needs PyYAML.

Source: autowarefoundation/autoware_universe 5e12a711 and, for CenterPoint's manifest v4.1, 656cdab8: the
schemas and what the nodes declare (names, types and ranges; facts, no code).
"""

from __future__ import annotations

import itertools
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.parameter_file import ParameterFileError, read_parameter_file
from mmdeploy_ext.contract.schema import Mismatch, number
from mmdeploy_ext.core.printable import shortened
from mmdeploy_ext.core.violations import ERROR, WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.contract.schema import Check

NODES, BELOW = '/**', 'ros__parameters'
"""Keys above all parameters: of any node."""
NOT_REAL = 'holds whole numbers without a point, integers to ROS 2: the node throws; write 64.0, not 64'
LARGEST_METRES = 1e5
"""Of a bound of a range: no sensor sees a hundred kilometres."""
CELL_METRES = number(1e-3, 1e3)
"""Side of a voxel."""
REMAPPER_SIZES = 64, 100
"""Entries of a matrix of the remapper."""
OTHER_WORD = dict(MOTORBIKE='MOTORCYCLE', MOTORCYCLE='MOTORBIKE')
"""Nodes know a motorcycle by either."""


def read_parameters(path: Path) -> tuple[dict[str, Any], list[Violation]]:
    """Return the parameters of a file, and what is wrong with it as a whole; needs PyYAML."""

    def wrong(said: str) -> tuple[dict[str, Any], list[Violation]]:
        return {}, [Violation(path.name, '', 'manifest', said)]

    try:
        content = read_parameter_file(path)
    except ParameterFileError as error:
        return wrong(f'{path.name}: {error}')
    if not isinstance(content, dict) or NODES not in content:
        got = ', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        return wrong(f'{path.name} begins with {got}, expected {NODES!r}: the parameters reach no node')
    below = content[NODES]
    if not isinstance(below, dict) or not isinstance(below.get(BELOW), dict):
        return wrong(f'{path.name} has no {BELOW} below {NODES!r}; put all keys below it')
    return below[BELOW], []


def file_in_folder(folder: Path, value: str) -> Path:
    """Return the regular file that a manifest names by a path relative to its folder.

    Raises:
        ValueError: the path leads out of the folder, or to no regular file.
    """
    check_inside(folder, value)
    path = folder / value
    try:
        is_file = path.is_file()
    except OSError as error:  # the name is too long
        raise ValueError(error.strerror) from error
    if not is_file:
        raise ValueError('there is no such file; the path is relative to this folder')
    return path


def check_inside(folder: Path, value: str) -> None:
    """Raise ValueError for a path of a manifest that leads out of its folder, a link in it followed."""
    if '\0' in value:
        raise ValueError('a path holds no NUL')
    path = PurePath(value)
    inside = not path.is_absolute() and '..' not in path.parts
    if not inside or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ValueError('it leads out of the folder, which has to hold all files of the model')


MODEL_FOLDER = '$(var model_path)/'
"""Beginning of a path that a launch file replaces by the folder of the model."""


def path_rules(
    file: str, folder: Path, values: Mapping[str, Any], keys: Sequence[str], at: str = '', prefix: str = ''
) -> tuple[dict[str, Path], list[Violation]]:
    """Return the files of a folder that a node reads, by the keys of the manifest, and which paths are wrong.

    Args:
        file: name of the manifest.
        folder: that all paths are relative to.
        values: of the manifest; keys that are missing, and values that are no text or empty, are left out.
        keys: of the paths.
        at: stands above the keys.
        prefix: beginning of a path that stands for the folder: `MODEL_FOLDER` if a launch file replaces it.
    """
    paths: dict[str, Path] = {}
    violations = []
    for key, value in _texts(values, keys):
        try:
            path = file_in_folder(folder, value.removeprefix(prefix))
        except ValueError as error:
            violations.append(_wrong_path(file, f'{at}{key}', f'{shortened(value)}: {error}'))
            continue
        same = [other for other, other_path in paths.items() if path == other_path]
        violations += [_wrong_path(file, f'{at}{key}', f'the file of {at}{other}') for other in same]
        paths[key] = path
    return paths, violations


def engine_rules(
    file: str, folder: Path, values: Mapping[str, Any], keys: Sequence[str], prefix: str = ''
) -> Iterator[Violation]:
    """Yield wrong paths of engines, which a node writes; for the arguments see `path_rules`."""
    engines: dict[str, Path] = {}
    for key, value in _texts(values, keys):
        relative = value.removeprefix(prefix)
        try:
            check_inside(folder, relative)
        except ValueError as error:
            yield _wrong_path(file, key, f'{shortened(value)}: {error}')
            continue
        engine = (folder / relative).resolve()
        if engine.suffix.lower() in ('.onnx', '.yaml'):
            problem = 'the node writes the engine there, over a file that it has to read'
            yield _wrong_path(file, key, f'{shortened(value)}: {problem}')
        for other in [other for other, other_engine in engines.items() if engine == other_engine]:
            problem = f'the file of {other}: one engine replaces the other'
            yield _wrong_path(file, key, f'{shortened(value)}, {problem}')
        engines[key] = engine


def _texts(values: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the keys whose values are texts that are not empty, and the texts."""
    return [(key, values[key]) for key in keys if isinstance(values.get(key), str) and values[key]]


def _wrong_path(file: str, key: str, problem: str) -> Violation:
    return Violation(file, key, 'path', f'{key} is {problem}')


def model_params(file: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Violation]]:
    """Return the parameters below `model_params`, and that there are none."""
    model = values.get('model_params')
    if isinstance(model, dict):
        return model, []
    said = f'model_params is {"not there" if model is None else repr(model)}, expected keys below it'
    return {}, [Violation(file, 'model_params', 'key', said)]


def absent_files(names: Sequence[str], there: Collection[str]) -> list[Violation]:
    """Return the files of a folder that are not there."""
    said = 'is not there; the node is given its path'
    return [Violation(name, '', 'missing-file', f'{name} {said}') for name in names if name not in there]


def key_rules(
    file: str, values: Mapping[str, Any], fields: Mapping[str, Check], reals: Sequence[str] = (), at: str = ''
) -> Iterator[Violation]:
    """Yield keys that are missing or that a node would refuse.

    All of `fields`, key -> check, are required. The node declares the keys in `reals` as floating point; as
    parameters of ROS 2 keep their type, it throws where whole numbers without a point are given. `at` stands
    above the keys.
    """
    for key, check in fields.items():
        name = f'{at}{key}'
        if key not in values:
            yield Violation(file, name, 'key', f'{name} is not there; the node declares it without a default')
            continue
        try:
            check(values[key], name)
        except Mismatch as error:
            yield Violation(file, name, 'value', str(error))
            continue
        if key in reals and not are_reals(values[key]):
            yield Violation(file, name, 'ros-type', f'{name} {NOT_REAL}')


def are_reals(value: Any) -> bool:
    """Return whether a number, or each number of a list, is one that ROS 2 takes for floating point."""
    return all(isinstance(number, float) for number in (value if isinstance(value, list) else [value]))


def right(
    values: Mapping[str, Any], fields: Iterable[str], found: Sequence[Violation], at: str = ''
) -> dict[str, Any]:
    """Return the parameters about which nothing was found, so that rules that join them can be looked at."""
    wrong = {one.attribute for one in found if one.severity == ERROR}
    return {key: values[key] for key in fields if key in values and f'{at}{key}' not in wrong}


def ascending(value: Any, where: str) -> None:
    """Check a list of numbers, each larger than the one before."""
    _check_numbers(value, where, 0, 'a list of numbers')
    if any(later <= sooner for sooner, later in itertools.pairwise(value)):
        raise Mismatch(f'{where} is {value}, expected ascending numbers')


def cuboid(value: Any, where: str) -> None:
    """Check six numbers: the lower corner and the upper one, in metres."""
    _check_numbers(value, where, 6, 'six numbers: x, y, z lower, then upper')
    if any(low >= high for low, high in zip(value[:3], value[3:], strict=True)):
        raise Mismatch(f'{where} is {value}: a lower bound is not below its upper one')


def bound(value: Any, where: str) -> None:
    """Check lower bound, upper bound and step."""
    _check_numbers(value, where, 3, 'three numbers: lower, upper, step')
    if value[0] >= value[1] or value[2] <= 0:
        raise Mismatch(f'{where} is {value}: expected lower below upper, and a positive step')


def _check_numbers(value: Any, where: str, count: int, expected: str) -> None:
    """Check a list of `count` finite numbers, or of at least one where `count` is 0."""
    if not _all_finite(value) or not value or len(value) != (count or len(value)):
        raise Mismatch(f'{where} is {value!r}, expected {expected}')


def _all_finite(value: Any) -> bool:
    """Return whether a value is a list of numbers that a float32 can hold as metres or square metres."""
    return isinstance(value, list) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= LARGEST_METRES
        for number in value
    )


# ---- rules that several manifests share


def class_rules(
    file: str, names: Sequence[str], known: Sequence[str], at: str = 'model_params.class_names'
) -> Iterator[Violation]:
    """Yield class names, at a key of a file, that a node does not know: it publishes them as UNKNOWN."""
    said = f'{at} has {{}}, which the node publishes as UNKNOWN; it knows {", ".join(known)}'
    for name in names:
        if name not in known and (word := word_of(name, known)):
            yield Violation(file, at, 'class', f'{said.format(repr(name))}: write {word}')
    if strange := [repr(name) for name in names if not word_of(name, known)]:
        yield Violation(file, at, 'class', said.format(', '.join(strange)), WARNING)


def word_of(name: str, known: Collection[str]) -> str:
    """Return a class name in the words that a node knows, '' where it knows none."""
    upper = name.upper()
    return next((word for word in (upper, OTHER_WORD.get(upper, '')) if word in known), '')


def grid_rules(
    file: str, cloud: Sequence[float], size: Sequence[float], at: str = 'model_params.'
) -> Iterator[Violation]:
    """Yield axes of which the node's float32 quotient has another number of cells than the grid.

    `cloud` is point_cloud_range, `size` voxel_size in metres, of x and y alone where the node has no cells
    along z; `at` stands above both keys.
    """
    for axis, low, high, step in zip('xyz', cloud[:3], cloud[3:], size, strict=False):
        exact, cells = (high - low) / step, node_cells(low, high, step)
        said, severity = f'is {exact:g} voxels of {step:g} m along {axis}', ERROR
        if cells != round(exact):
            said += f', and {cells} by the float32 quotient of the node, cut off'
        elif abs(exact - cells) > 1e-3:
            said, severity = f'{said}, no whole number', WARNING
        else:
            continue
        said = f'{at}point_cloud_range {said}; change the range or {at}voxel_size'
        yield Violation(file, f'{at}point_cloud_range', 'grid', said, severity)


def node_cells(low: float, high: float, step: float) -> int:
    """Return how many cells a node counts between bounds: a float32 quotient, cut off.

    Source: autoware_lidar_centerpoint centerpoint_config.hpp:95-102.
    """
    import numpy as np

    return int((np.float32(high) - np.float32(low)) / np.float32(step))


def remapper_rules(path: Path) -> Iterator[Violation]:
    """Yield what is wrong with `detection_class_remapper.param.yaml`: three matrices of label x label."""
    values, found = read_parameters(path)
    if found:
        yield from found
        return
    sizes = {}
    for key in ('allow_remapping_by_area_matrix', 'min_area_matrix', 'max_area_matrix'):
        yield from _matrix_rules(path.name, key, values.get(key))
        if _all_finite(values.get(key)) and len(values[key]) in REMAPPER_SIZES:
            sizes[key] = len(values[key])
    if len(set(sizes.values())) > 1:
        said = ', '.join(f'{key} has {count} entries' for key, count in sizes.items())
        yield Violation(path.name, 'allow_remapping_by_area_matrix', 'value', said)
    elif len(sizes) == 3:
        lower, upper = values['min_area_matrix'], values['max_area_matrix']
        if any(low > high for low, high in zip(lower, upper, strict=True)):
            said = 'min_area_matrix has an entry above that of max_area_matrix: nothing is remapped there'
            yield Violation(path.name, 'min_area_matrix', 'value', said)


def _matrix_rules(file: str, key: str, entries: Any) -> Iterator[Violation]:
    """Yield what is wrong with the entries of one matrix of the remapper."""
    expected = 'expected 64 numbers: 8 x 8 labels, row by row (100 since #12732)'
    if not isinstance(entries, list):
        got = 'is not there' if entries is None else f'is {repr(entries)[:60]}'
        yield Violation(file, key, 'value', f'{key} {got}, {expected}')
    elif not _all_finite(entries):
        said = f'{key} has entries that are no numbers up to {LARGEST_METRES:g}, {expected}'
        yield Violation(file, key, 'value', said)
    elif len(entries) not in REMAPPER_SIZES:
        yield Violation(file, key, 'value', f'{key} has {len(entries)} entries, {expected}')
    elif not key.startswith('allow'):
        if not are_reals(entries):
            yield Violation(file, key, 'ros-type', f'{key} {NOT_REAL}')
    elif not all(isinstance(entry, int) and entry in (0, 1) for entry in entries):
        yield Violation(file, key, 'value', f'{key} holds other values than the integers 0 and 1')
