"""The Python files of a folder that define the types of a config."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_FILES = 20_000
SKIPPED_FOLDERS = ('site-packages', 'node_modules', '__pycache__', 'build')


def python_files(folder: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith('.') and name not in SKIPPED_FOLDERS
        )
        yield from (Path(directory, name) for name in sorted(files) if name.endswith('.py'))


def files_of_types(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Type -> file below a folder that defines it, preferably one that registers something."""
    if not (either := '|'.join(map(re.escape, names))):
        return {}
    pattern = re.compile(rf'^(?:[ \t]*class|def) ({either})\b', re.MULTILINE)
    registering: dict[str, Path] = {}
    not_registering: dict[str, Path] = {}
    for path in itertools.islice(python_files(folder), MOST_FILES):
        text = ''
        with contextlib.suppress(OSError):  # a link to nothing, as editors leave them, or a file of others
            text = path.read_text(encoding='utf-8', errors='replace')
        for name in pattern.findall(text):
            (registering if 'register_module' in text else not_registering).setdefault(name, path)
    return not_registering | registering
