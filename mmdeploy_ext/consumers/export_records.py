"""What exported files state of themselves in their metadata, against what lies beside them. Needs onnx.

Files of other programs state nothing, and break no rule here.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.core.violations import WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import onnx

OF_EXPORT = 'export'
"""Rule of values that a program reads without a fault, and that are not those of the export."""


def record_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return entry of the metadata -> its value, read as JSON; {} of a file of another program.

    Entries that are no JSON are left out; names are without `metadata.PREFIX`.
    """
    record: dict[str, Any] = {}
    for entry in model.metadata_props:
        if entry.key.startswith(PREFIX):
            try:
                record[entry.key.removeprefix(PREFIX)] = json.loads(entry.value)
            except (ValueError, RecursionError):  # a damaged entry states nothing
                continue
    return record


def recorded_value(record: Mapping[str, Any], *keys: str) -> Any:
    """Return a value inside the entries of `record_of`, found key by key; None if there is none."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def distinct_records(models: Mapping[str, onnx.ModelProto]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and new statements of each file whose classes or preparation no file before it states.

    `models` is name of a file -> its model, in the order of the files. The statements are the entries
    `classes` and `preprocess` of `record_of`; one that is equal to that of a file before is left out.
    """
    earlier: list[tuple[str, Any]] = []
    for file, model in models.items():
        stated = [item for item in record_of(model).items() if item[0] in ('classes', 'preprocess')]
        if new_statements := [item for item in stated if item not in earlier]:
            yield file, dict(new_statements)
        earlier += stated


def mixture_rules(models: Mapping[str, onnx.ModelProto]) -> Iterator[Violation]:
    """Yield a warning of the first file that was exported from another checkpoint than a file before it.

    Files that state no checkpoint are left out. `models` is name of a file -> its model, in the order of the
    files.
    """
    hashes = {file: recorded_value(record_of(model), 'checkpoint_sha256') for file, model in models.items()}
    stated = [(file, text) for file, text in hashes.items() if isinstance(text, str) and text]
    for file, text in stated[1:]:
        first_file, first = stated[0]
        if text != first:
            message = f'{file} was exported from the checkpoint {text[:12]}, {first_file} from {first[:12]}'
            yield Violation(file, '', 'mixture', f'{message}: are they of one model?', WARNING)
            return


def value_rules(
    file: str, values: Mapping[str, Any], expected: Mapping[str, Any], graph: str, prefix: str = ''
) -> Iterator[Violation]:
    """Yield values of a manifest that are not those with which a graph was exported.

    Args:
        file: name of the manifest.
        values: key -> valid value of it.
        expected: key -> value that the metadata of the graph state; None if they state none.
        graph: name of the file of the graph.
        prefix: text before the keys in messages.
    """
    for key, value in expected.items():
        if value is not None and key in values and not is_same(values[key], value):
            message = f'{prefix}{key} is {values[key]}; {graph} states {value}, with which it was exported'
            yield Violation(file, f'{prefix}{key}', OF_EXPORT, message)


def class_order_rules(
    file: str,
    names: Sequence[str],
    expected: Any,
    graph: str,
    prefix: str = '',
    words: Collection[str] = (),
) -> Iterator[Violation]:
    """Yield an error if class names are those of a graph in another order; else warnings about single names.

    A name that is not the graph's is a warning if the node knows the name in the graph, or if the graph has
    the name at another label. Names of the graph that the node does not know may be renamed.

    Args:
        file: name of the manifest.
        names: its class names, by label.
        expected: the names of the graph's metadata in the words of the node, by label; anything else that a
            damaged file states is taken for no statement.
        graph: name of the file of the graph.
        prefix: text before the key in messages.
        words: all names that the node knows.
    """
    key = f'{prefix}class_names'
    if not isinstance(expected, list) or list(names) == expected:
        return
    expected = [str(name) for name in expected]
    if sorted(names) == sorted(expected):
        message = f'{key} are {", ".join(names)}; the labels of {graph} are in another order: '
        yield Violation(file, key, OF_EXPORT, message + ', '.join(expected))
        return
    for label, (name, stated) in enumerate(zip(names, expected, strict=False)):
        if name != stated and (stated in words or name in expected):
            message = (
                f'{key}[{label}] is {name}; that label of {graph} is {stated}: is it renamed on purpose?'
            )
            yield Violation(file, key, OF_EXPORT, message, WARNING)


def is_same(value: Any, expected: Any) -> bool:
    """Return whether two values of JSON are equal, numbers up to 1e-6 of their size, as float32 has them.

    Numbers that are at most 1e-9 apart are equal, too. Lists are compared entry by entry; in dicts numbers
    have to be the same.
    """
    if isinstance(value, list) and isinstance(expected, list):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(is_same(*pair) for pair in pairs)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)
    return value == expected
