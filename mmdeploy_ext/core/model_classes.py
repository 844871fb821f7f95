"""The classes of a model that no installed library defines. Needs no torch.

These are classes of modules and of their attributes: box coders, generators of priors, voxel layers.
Installed libraries are here mmcv, mmdet, mmdet3d and mmsegmentation, except files of these four that were
edited, the packages `LIBRARIES`, and Python's own. Classes of any other package count as the user's.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.json_dataclass import JsonDataclass
from mmdeploy_ext.core.source_code import (
    OURS,
    file_of_class,
    is_installed,
    is_ours,
    module_of,
    source_of_class,
    source_of_function,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LIBRARIES = ('torch', 'torchvision', 'numpy', 'addict', 'spconv', 'cumm', 'builtins')
"""Packages whose classes are left out, beside the four of OpenMMLab and those of Python itself."""


@dataclasses.dataclass(frozen=True)
class ModelClass(JsonDataclass):
    """A class of a model that no installed library defines.

    Attributes:
        name: qualified name of the class; `ATSSHead.get_bboxes` if a plugin replaced that method of a
            library's class.
        file: path of the file that defines it, relative to the folder that it was imported from.
        sha256: hash of its normalised source; '' if that cannot be read.
        ours: whether it is a class of `mmdeploy_ext`, not of the user.
    """

    name: str
    file: str
    sha256: str
    ours: bool


def model_classes(model: Any) -> tuple[ModelClass, ...]:
    """Return the classes of a model that no installed library has, in the order in which modules appear.

    Base classes are among them, and methods of a library's class that a plugin replaced; each occurs once.

    Args:
        model: a `torch.nn.Module`.
    """
    classes: dict[type, list[ModelClass]] = {}
    for kind in classes_of(model):
        for base in kind.__mro__:
            if base not in classes:
                classes[base] = list(_described(base))
    return tuple(dict.fromkeys(entry for entries in classes.values() for entry in entries))


def is_users_class(kind: type) -> bool:
    """Return whether a class, a base of it, or a method that was put into either, is the user's.

    That is one of no installed library, see the module, and not `mmdeploy_ext`'s. A class without methods
    that was typed at a console is not found.
    """
    return any(not entry.ours for base in kind.__mro__ for entry in _described(base))


def classes_of(model: Any) -> Iterator[type]:
    """Yield the classes of the modules of a model and of their attributes, each as often as it occurs.

    Attributes are those of the object itself (`vars`). Of a list or a tuple the classes of its entries are
    yielded; entries of dicts and attributes of attributes are not looked at. `model` is a `torch.nn.Module`.
    """
    for module in model.modules():
        yield type(module)
        for value in vars(module).values():
            several = value if isinstance(value, list | tuple) else [value]
            yield from (type(entry) for entry in several)


def files_of_users_classes(model: Any) -> set[Path]:
    """Return the files, absolute, that define the user's classes among those of a `torch.nn.Module`.

    They are those of `model_classes` that are not `ours`. Methods of a library's class that a plugin
    replaced are in the plugin's file.
    """
    files = set()
    for base in dict.fromkeys(base for kind in classes_of(model) for base in kind.__mro__):
        if all(entry.ours for entry in _described(base)):
            continue
        path = file_of_class(base)
        if is_installed(base.__module__.partition('.')[0], path):
            replaced = _replaced_functions(base).values()
            files.update(Path(function.__code__.co_filename) for function in replaced)
        else:
            files.add(path)
    return {file.resolve() for file in files}


def _described(kind: type) -> Iterator[ModelClass]:
    """Yield the entry of a class; of a library's class those of its replaced methods, if there are any."""
    package = kind.__module__.partition('.')[0]
    if package in sys.stdlib_module_names or package in LIBRARIES:
        return
    path = file_of_class(kind)
    if path is None:
        return
    if is_installed(package, path):
        for name, function in _replaced_functions(kind).items():
            source = source_of_function(function)
            yield ModelClass(f'{kind.__qualname__}.{name}', source.file, source.sha256, ours=False)
        return
    source = source_of_class(kind)
    yield ModelClass(kind.__qualname__, source.file, source.sha256, is_ours(path.resolve()))


def _replaced_functions(kind: type) -> dict[str, Any]:
    """Return name -> function of the methods of a library's class that the user's code has replaced.

    Those that `mmdeploy_ext` itself replaced are left out; they are in `compat`.
    """
    functions = {}
    for name, value in vars(kind).items():
        function = getattr(value, '__func__', value)
        if hasattr(function, '__code__') and module_of(function) != kind.__module__ and is_users(function):
            functions[name] = function
    return functions


def is_users(function: Any) -> bool:
    """Return whether a Python function is of no installed library, see the module, and not `mmdeploy_ext`'s.

    One of any other package, installed or not, counts as the user's.
    """
    package = module_of(function).partition('.')[0]
    if package in (*LIBRARIES, OURS.name) or package in sys.stdlib_module_names:
        return False
    return not is_installed(package, Path(function.__code__.co_filename))


def changed_classes(exported: Iterable[Mapping[str, Any]], present: Iterable[ModelClass]) -> list[str]:
    """Return a sentence for each class that has changed since a file was exported; [] if none has.

    A class has changed if it is in one of the two alone, or if its hash differs: one whose source can be read
    on neither side has not.

    Args:
        exported: entries of the file's metadata, see `ModelClass.to_json`.
        present: the classes of the model in this process.
    """
    before = {(entry['name'], entry['file']): entry['sha256'] for entry in exported}
    after = {(entry.name, entry.file): entry.sha256 for entry in present}
    lines = []
    for key in dict.fromkeys([*after, *before]):
        name, file = key
        if key not in before:
            lines.append(f'{name} ({file}) is a class of this model, and was none when the file was exported')
        elif key not in after:
            lines.append(f'{name} ({file}) was a class of the model when the file was exported, and is none')
        elif before[key] != after[key]:
            lines.append(
                f'{name} ({file}) was {before[key][:12]} when the file was exported, and is {after[key][:12]}'
            )
    return lines
