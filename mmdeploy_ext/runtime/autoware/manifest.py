"""Manifests of Autoware's perception nodes: ROS 2 parameter files, read key by key. Needs PyYAML.

Source: autowarefoundation/autoware_universe 5e12a711 and, for CenterPoint's manifest v4.1, 656cdab8: the
schemas and what the nodes declare (names, types and ranges; facts, no code).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.schema import Mismatch
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.sparse.contract_fields import ERROR, WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.contract.schema import Check

NODES, BELOW = '/**', 'ros__parameters'
"""Keys above all parameters: of any node."""


def read_parameters(path: Path) -> tuple[dict[str, Any], list[Violation]]:
    """Return the parameters of a file, and what is wrong with it as a whole.

    Raises:
        ModelFileError: PyYAML is not here.
    """
    try:
        import yaml
    except ImportError as error:
        raise ModelFileError(f'{path}: reading it needs PyYAML; pip install pyyaml') from error

    def wrong(said: str) -> tuple[dict[str, Any], list[Violation]]:
        return {}, [Violation(path.name, '', 'manifest', said)]

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return wrong(f'{path.name} is no YAML: {" ".join(str(error).split())}')
    if not isinstance(content, dict) or NODES not in content:
        got = ', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        return wrong(f'{path.name} begins with {got}, expected {NODES!r}: the parameters reach no node')
    below = content[NODES]
    if not isinstance(below, dict) or not isinstance(below.get(BELOW), dict):
        return wrong(f'{path.name} has no {BELOW} below {NODES!r}; put all keys below it')
    return below[BELOW], []


def key_rules(
    file: str, values: Mapping[str, Any], fields: Mapping[str, Check], reals: Sequence[str] = (), at: str = ''
) -> Iterator[Violation]:
    """Yield keys that are missing or that a node would refuse.

    Args:
        file: name, for messages.
        values: parameters as they were read.
        fields: key -> check of its value; all are required.
        reals: keys that the node declares as floating point.
        at: what stands above the keys, such as 'model_params.'.
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
        if key in reals and (said := _mixed(values[key])):
            yield Violation(file, name, 'ros-type', f'{name} {said}', WARNING)


def usable(found: Sequence[Violation], *keys: str) -> bool:
    """Return whether nothing was found about keys, so that rules that join them can be looked at."""
    return not any(one.attribute in keys and one.severity == ERROR for one in found)


def _mixed(value: Any) -> str:
    """Return what is wrong with numbers that ROS 2 takes for integers: parameters keep their type."""
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(number, float) for number in numbers):
        return ''
    return 'holds whole numbers without a point; ROS 2 takes them for integers: write 64.0, not 64'


def ascending(value: Any, where: str) -> None:
    """Check a list of numbers, each larger than the one before."""
    if not isinstance(value, list) or not value or not all(map(_finite, value)):
        raise Mismatch(f'{where} is {value!r}, expected a list of numbers')
    if any(later <= sooner for sooner, later in itertools.pairwise(value)):
        raise Mismatch(f'{where} is {value}, expected ascending numbers')


def cuboid(value: Any, where: str) -> None:
    """Check six numbers: the lower corner and the upper one, in metres."""
    if not isinstance(value, list) or len(value) != 6 or not all(map(_finite, value)):
        raise Mismatch(f'{where} is {value!r}, expected six numbers: x, y, z lower, then upper')
    if any(low >= high for low, high in zip(value[:3], value[3:], strict=True)):
        raise Mismatch(f'{where} is {value}: a lower bound is not below its upper one')


def bound(value: Any, where: str) -> None:
    """Check lower bound, upper bound and step."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(_finite, value)):
        raise Mismatch(f'{where} is {value!r}, expected three numbers: lower, upper, step')
    if value[0] >= value[1] or value[2] <= 0:
        raise Mismatch(f'{where} is {value}: expected lower below upper, and a positive step')


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- rules that several manifests share


def class_rules(
    file: str, names: Sequence[str], known: Sequence[str], at: str = 'model_params.class_names'
) -> Iterator[Violation]:
    """Yield class names that a node does not know: it publishes them as UNKNOWN.

    Args:
        file: name, for messages.
        names: of the manifest.
        known: to the node.
        at: the key.
    """
    other = dict(MOTORBIKE='MOTORCYCLE', MOTORCYCLE='MOTORBIKE')
    said, there = f'{at} has {{}}, which the node publishes as UNKNOWN', f'; it knows {", ".join(known)}'
    strange = []
    for name in names:
        meant = next((one for one in (name.upper(), other.get(name.upper())) if one in known), None)
        if meant is None:
            strange.append(name)
        elif name not in known:
            message = said.format(repr(name)) + there
            yield Violation(file, at, 'class', f'{message}: write {meant}')
    if strange:
        yield Violation(file, at, 'class', said.format(', '.join(map(repr, strange))) + there, WARNING)


def grid_rules(
    file: str, cloud: Sequence[float], size: Sequence[float], at: str = 'model_params.'
) -> Iterator[Violation]:
    """Yield axes of which the node's float32 quotient has another number of cells than the grid.

    Args:
        file: name, for messages.
        cloud: point_cloud_range, metres.
        size: voxel_size, metres; of x and y alone where the node has no cells along z.
        at: what stands above the keys.
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
    yield from found
    if found:
        return
    sizes = {}
    for key in ('allow_remapping_by_area_matrix', 'min_area_matrix', 'max_area_matrix'):
        rows = values.get(key)
        if not isinstance(rows, list) or len(rows) not in (64, 100) or not all(map(_finite, rows)):
            count = f'{len(rows)} entries' if isinstance(rows, list) else repr(rows)
            said = f'{key} has {count}, expected 64 numbers: 8 x 8 labels, row by row (100 since #12732)'
            yield Violation(path.name, key, 'value', said.replace('has None', 'is not there'))
            continue
        sizes[key] = len(rows)
        if key.startswith('allow') and not all(isinstance(one, int) and one in (0, 1) for one in rows):
            yield Violation(path.name, key, 'value', f'{key} holds other values than the integers 0 and 1')
    if len(set(sizes.values())) > 1:
        said = ', '.join(f'{key} has {count} entries' for key, count in sizes.items())
        yield Violation(path.name, 'allow_remapping_by_area_matrix', 'value', said)
    elif len(sizes) == 3:
        lower, upper = values['min_area_matrix'], values['max_area_matrix']
        if any(low > high for low, high in zip(lower, upper, strict=True)):
            said = 'min_area_matrix has an entry above that of max_area_matrix: nothing is remapped there'
            yield Violation(path.name, 'min_area_matrix', 'value', said)
