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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx

OF_EXPORT = 'export'
"""Rule of values that a program reads without a fault, and that are not those of the export."""


def recorded(model: onnx.ModelProto, name: str) -> Any:
    """Return a value of the metadata by its keys with dots; None if there is none."""
    entry, *keys = name.split('.')
    text = next((prop.value for prop in model.metadata_props if prop.key == f'{PREFIX}{entry}'), 'null')
    try:
        value = json.loads(text)
    except ValueError:
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def mixture_rules(models: Mapping[str, onnx.ModelProto]) -> Iterator[Violation]:
    """Yield a warning of the first file that was exported from another checkpoint than a file before it.

    `models` is name of a file -> its model.
    """
    hashes = {file: recorded(model, 'checkpoint_sha256') for file, model in models.items()}
    stated = [(file, text) for file, text in hashes.items() if isinstance(text, str) and text]
    for file, text in stated[1:]:
        first_file, first = stated[0]
        if text != first:
            message = f'{file} was exported from the checkpoint {text[:12]}, {first_file} from {first[:12]}'
            yield Violation(file, '', 'mixture', f'{message}: are they of one model?', WARNING)
            return


def export_rules(
    file: str,
    values: Mapping[str, Any],
    names: Mapping[str, str],
    models: Mapping[str, onnx.ModelProto],
    translate: Callable[[Sequence[str]], list[str]],
    words: Sequence[str],
) -> Iterator[Violation]:
    """Yield values of a manifest that are not those with which a graph was exported.

    Args:
        file: name of the manifest.
        values: key -> value of it.
        names: key -> name of the same value in the metadata, see `recorded`; 'classes' are class names.
        models: name of a file -> its model.
        translate: puts the class names of the metadata into the words of the program.
        words: class names that the program knows.
    """
    for key, value in values.items():
        earlier: list[Any] = []
        for graph, model in models.items():
            expected = recorded(model, names[key])
            if expected is None or expected in earlier:
                continue
            earlier.append(expected)
            if names[key] == 'classes':
                if isinstance(expected, list):
                    yield from _class_rules(
                        file, key, value, translate(list(map(str, expected))), graph, words
                    )
            elif not is_same(value, expected):
                message = f'{key} is {value}; {graph} states {expected}, with which it was exported'
                yield Violation(file, key, OF_EXPORT, message)


def _class_rules(
    file: str, key: str, names: Sequence[str], expected: Sequence[str], graph: str, words: Sequence[str]
) -> Iterator[Violation]:
    """Yield an error for names in another order; else a warning for each label with another known name."""
    if list(names) != list(expected) and sorted(names) == sorted(expected):
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
    """Return whether two values of JSON are equal, numbers up to 1e-6 of their size, as float32 has them."""
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(is_same, value, expected))
    numbers = all(
        isinstance(entry, int | float) and not isinstance(entry, bool) for entry in (value, expected)
    )
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9) if numbers else value == expected
