"""Copies of OpenMMLab's libraries in users' folders that are older than what families are written for."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdeploy_ext.core.errors import ConfigError

FITTING = {'mmdet': range(3), 'mmdet3d': range(1, 2), 'mmseg': range(1)}
"""Library that repositories have copies of -> major versions beside which families can be imported."""


def has_copy(folder: Path, library: str) -> bool:
    """Return whether a folder has a copy of a library that fits, as a package."""
    return _major_version(folder / library) in FITTING[library]


def is_older_copy(folder: Path, library: str) -> bool:
    """Return whether a folder has a copy of a library, as a package, that is older than those that fit."""
    major = _major_version(folder / library)
    return major is not None and major < FITTING[library].start


def _major_version(package: Path) -> int | None:
    """Return the first number of the version of a package; None: there is none.

    A copy that does not tell its version, such as that of mit-han-lab/bevfusion, is of a version 0.
    """
    if not (package / '__init__.py').is_file():
        return None
    files = [file for file in (package / 'version.py', package / '__init__.py') if file.is_file()]
    texts = (file.read_text(encoding='utf-8') for file in files)
    versions = (re.search(r'^__version__\s*=\s*[\'"](\d+)', text, re.MULTILINE) for text in texts)
    return next((int(version[1]) for version in versions if version), 0)


@contextlib.contextmanager
def without_older_copies(library: str) -> Iterator[None]:
    """Let imports of a library pass over older copies on `sys.path`, such as PYTHONPATH=. finds.

    Raises:
        ConfigError: an older copy is imported already.
    """
    file = getattr(sys.modules.get(library), '__file__', None)
    if file and is_older_copy(folder := Path(file).resolve().parents[1], library):
        raise ConfigError(
            f'{library} was imported from {folder}, which is older than {FITTING[library].start}.0; '
            f'this process needs the installed one: import nothing of this copy before'
        )
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not is_older_copy(Path(entry or '.'), library)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
