"""Names of files that a file's content gives: nothing outside of the file's folder is read or written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import UNPRINTABLE, DataError, shortened

LONGEST = 255
"""Bytes of a name."""


def name_problem(name: Any, below: bool = False) -> str:
    """Return why a text cannot name a file in a folder, or ''; `below` allows folders: 'inputs/000/x.bin'."""
    expected = 'a path below the folder, such as a/b.bin' if below else 'a plain name without separators'
    parts = name.split('/') if isinstance(name, str) and below else [name]
    if all(map(_is_plain, parts)):
        return ''
    return f'is {shortened(name)}; expected {expected}'


def _is_plain(part: Any) -> bool:
    if not isinstance(part, str) or part in ('', '.', '..') or '/' in part or '\\' in part:
        return False
    return not UNPRINTABLE.search(part) and len(os.fsencode(part)) <= LONGEST


def path_in(folder: str | os.PathLike[str], name: Any, source: object, below: bool = False) -> Path:
    """Return the path of a file in `folder` that the content of `source` names; it may be missing.

    DataError: `name_problem`, or the path is a link, leads through one, or is no regular file.
    """
    if problem := name_problem(name, below):
        raise DataError(f'{source}: the name of a file {problem}')
    path = Path(folder)
    for part in name.split('/'):
        path /= part
        try:
            mode = path.lstat().st_mode
        except OSError:  # it is missing
            return Path(folder, name)
        if stat.S_ISLNK(mode):
            raise DataError(f'{source}: {path} is a link; expected a file in {folder}: copy it there')
    if not stat.S_ISREG(mode):
        kind = 'a folder' if stat.S_ISDIR(mode) else 'a device or a pipe'
        raise DataError(f'{source}: {path} is {kind}; expected a file')
    return path
