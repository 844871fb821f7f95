"""The classes of a model that no installed library defines. Needs no torch.

These are classes of modules and of their attributes: box coders, generators of priors, voxel layers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.files import JsonDataclass
from mmdeploy_ext.core.source_code import file_of, is_copied, is_ours, is_users, place_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class ModelClass(JsonDataclass):
    """A class of a model that no installed library defines.

    Attributes:
        name: qualified name of the class.
        file: path of the file that defines it, relative to the folder that it was imported from.
        sha256: hash of that file; '' if it cannot be read.
        ours: whether it is a class of `mmdeploy_ext`, not of the user.
        line: number of its first line; 0 if that cannot be read, and in the metadata of a file.
    """

    name: str
    file: str
    sha256: str
    ours: bool
    line: int = dataclasses.field(default=0, compare=False)

    @property
    def place(self) -> str:
        """Where it is defined, such as `plugin/head.py:120`."""
        return f'{self.file}:{self.line}' if self.line else self.file

    def to_json(self) -> dict[str, Any]:
        """Return all fields but the line, which moves with what stands above it."""
        return dict(name=self.name, file=self.file, sha256=self.sha256, ours=self.ours)


def model_classes(model: Any) -> tuple[ModelClass, ...]:
    """Return the classes of a `torch.nn.Module` that no installed library has, bases among them, each once.

    They come in the order in which modules appear.
    """
    kinds = ((kind, file_of(kind)) for kind in classes_of(model))
    return tuple(
        ModelClass(kind.__qualname__, *_file_facts(kind, file), place_of(kind)[1])
        for kind, file in kinds
        if file is not None and (is_users(kind) or is_ours(file.resolve()))
    )


def _file_facts(kind: type, file: Path) -> tuple[str, str, bool]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ''
    return place_of(kind)[0], digest, is_ours(file.resolve())


def classes_of(model: Any) -> dict[type, None]:
    """Return the classes, and their bases, of the modules of a model and of their attributes, each once."""
    return dict.fromkeys(base for _, part in parts_of(model) for base in type(part).__mro__)


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of each module of a model, and of each attribute of one.

    Of an attribute that is a list or a tuple its entries are yielded; dicts and attributes of attributes are
    not looked at.
    """
    for path, module in model.named_modules():
        yield path, module
        for name, value in vars(module).items():
            several = value if isinstance(value, list | tuple) else [value]
            yield from ((f'{path}.{name}'.lstrip('.'), entry) for entry in several)


def files_of_users_classes(model: Any) -> set[Path]:
    """Return the files, absolute, that define the user's classes in a `torch.nn.Module`."""
    return {file.resolve() for kind in classes_of(model) if is_users(kind) and (file := file_of(kind))}


def is_users_class(kind: type) -> bool:
    """Return whether a class or a base of it is the user's, see `is_users`."""
    return any(is_users(base) for base in kind.__mro__)


def users_class(kind: type) -> str:
    """Return name and place of a class, such as `MyResize (plugin/steps.py:12)`, or of the user's base of it.

    '' unless it is the user's; a library's class in a copy of the library is not.
    """
    owner = next((base for base in kind.__mro__ if is_users(base) and not is_copied(base)), None)
    return '' if owner is None else f'{owner.__name__} ({_place(owner)})'


def users_method(kind: type, name: str) -> str:
    """Return class, name and place of a method of `kind`, such as `Head.get_bboxes (plugin/head.py:120)`.

    '' unless the user's code defines it; a library's class in a copy of the library does not count as such.
    """
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    if owner is None or is_copied(owner):
        return ''
    value = vars(owner)[name]
    function = inspect.unwrap(getattr(value, '__func__', value))
    defined = function if inspect.isfunction(function) else owner
    if not is_users(owner) and not is_users(defined):
        return ''
    place = _place(defined)
    return f'{owner.__name__}.{name} ({place})'


def _place(defined: Any) -> str:
    file, line = place_of(defined)
    return f'{file}:{line}'


def changed_files(exported: Iterable[Mapping[str, Any]], present: Iterable[ModelClass]) -> list[str]:
    """Return the files of the user's classes that are others than when a file was exported.

    Args:
        exported: entries of the file's metadata, see `ModelClass.to_json`.
        present: the classes of the model in this process.
    """
    before = {entry['file']: entry['sha256'] for entry in exported if not entry['ours']}
    after = {entry.file: entry.sha256 for entry in present if not entry.ours}
    return sorted(file for file in {*before, *after} if before.get(file) != after.get(file))
