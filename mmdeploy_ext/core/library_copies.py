"""Copies of OpenMMLab's libraries in users' folders that are older than what families are written for."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdeploy_ext.core.errors import ConfigError

LEAST_MAJOR = {'mmdet3d': 1}
"""Library -> first major version that families can be written with."""


def is_older_copy(folder: Path, library: str) -> bool:
    """Return whether a folder has a copy of a library, as a package, that is older than `LEAST_MAJOR`.

    One without a `version.py`, such as that of mit-han-lab/bevfusion, is of a version 0.
    """
    package = folder / library
    if library not in LEAST_MAJOR or not (package / '__init__.py').is_file():
        return False
    try:
        text = (package / 'version.py').read_text(encoding='utf-8')
    except OSError:
        return True
    version = re.search(r'^__version__\s*=\s*[\'"](\d+)', text, re.MULTILINE)
    return version is None or int(version.group(1)) < LEAST_MAJOR[library]


@contextlib.contextmanager
def without_older_copies(library: str) -> Iterator[None]:
    """Let imports of a library pass over older copies on `sys.path`, such as PYTHONPATH=. finds.

    Raises:
        ConfigError: an older copy is imported already.
    """
    file = getattr(sys.modules.get(library), '__file__', None)
    if file and is_older_copy(folder := Path(file).resolve().parents[1], library):
        raise ConfigError(
            f'{library} was imported from {folder}, which is older than {LEAST_MAJOR[library]}.0; '
            f'this process needs the installed one: import nothing of this copy before'
        )
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not is_older_copy(Path(entry or '.'), library)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
