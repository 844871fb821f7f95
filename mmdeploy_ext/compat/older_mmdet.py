"""Names of mmdet 2.28.2 that the copy of mmdet in a repository may be too old to have.

Families and models name classes of mmdet 2.28.2. Research repositories bring copies of mmdet 2.11 to 2.25
that are imported in its place; what these lack is no part of their detectors.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

TRIED = (2, 28)
"""The release that families and models are written for."""


class OlderModule:
    """A module of an mmdet older than 2.28, or one that it lacks: missing names are empty classes.

    No object is an instance of such a class, so that `isinstance` returns False. It can be derived from, but
    neither it nor what is derived from it works.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        try:
            return getattr(importlib.import_module(self._name), name)
        except ModuleNotFoundError as error:
            if not f'{self._name}.'.startswith(f'{error.name}.'):
                raise
        except AttributeError:
            pass
        return missing_class(name, self._name)


@functools.cache
def missing_class(name: str, module: str = '') -> type:
    """Return the empty class that stands for whatever `name` is in `module`, which cannot be imported.

    It is the same class at every call with the same arguments.
    """
    return type(name, (), {'__module__': module, '__doc__': f'No class {name} can be imported.'})


def mmdet_release() -> tuple[int, int]:
    """Return the first two numbers of the version of the imported mmdet."""
    import mmdet

    return release_of(mmdet.__version__)


def release_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version of mmdet, such as (2, 14) of '2.14.0'."""
    major, minor = version.split('.')[:2]
    return int(major), int(minor)


def mmdet_module(name: str) -> ModuleType | OlderModule:
    """Return a module of mmdet by its full name, such as 'mmdet.models.dense_heads'.

    Of an mmdet older than 2.28 it is an `OlderModule`, which imports when a name is looked up. ImportError:
    mmdet 2.28 or newer has no such module.
    """
    return importlib.import_module(name) if mmdet_release() >= TRIED else OlderModule(name)


def lacks_part_of_mmdet(error: ImportError | AttributeError) -> bool:
    """Return whether an import failed since the imported mmdet is older than 2.28 and lacks what it names.

    What is missing is a module of mmdet, or a name that one of its modules does not have.
    """
    module = getattr(error, 'obj', None)  # of an AttributeError
    name = module.__name__ if isinstance(module, ModuleType) else error.name or ''
    return name.partition('.')[0] == 'mmdet' and 'mmdet' in sys.modules and mmdet_release() < TRIED
