"""Folders that are replaced as a whole: written beside their place, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import AnyPath, check_writable, write_error


def check_replaceable(target: AnyPath) -> None:
    """Raise UsageError for a file, the working folder, a mount point or a read-only folder."""
    folder = Path(target).resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'{target}: is a file, expected a folder')
    if folder == Path.cwd() or os.path.ismount(folder):
        kind = 'the working folder' if folder == Path.cwd() else 'a mount point'
        raise UsageError(
            f'{target}: is {kind}; a folder of graphs is replaced as a whole, so give the name of one in it: '
            f'{Path(target) / "graphs"}'
        )
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f'{target}: cannot be written; change its permissions, or choose another folder')
    check_writable(folder.with_name(f'.{folder.name}.part'))


def check_new_folder(folder: Path) -> None:
    """Raise UsageError unless the folder is missing or empty."""
    above = next((parent for parent in folder.parents if parent.exists()), folder.parent)
    if above.is_file():
        raise UsageError(f'{folder}: {above} is a file; name a new folder')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        got = 'is not empty' if folder.is_dir() else 'is a file'
        raise UsageError(f'{folder}: {got}; name a new folder')


@contextlib.contextmanager
def replaced_folder(target: AnyPath, outdated: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` if the body succeeds.

    Other entries of the old folder stay, except names in `outdated`.
    """
    check_replaceable(target)
    folder = Path(target).resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp('.part', f'.{folder.name}.', folder.parent))
        try:
            new, old = beside / 'new', beside / 'old'
            new.mkdir()
            yield new
            _exchange(folder, new, old)
        except BaseException:
            shutil.rmtree(beside)
            raise
        _move_rest(old, folder, outdated)
        shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise write_error(target, error) from error


def _exchange(folder: Path, new: Path, old: Path) -> None:
    if folder.exists():
        shutil.copymode(folder, new)
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _move_rest(old: Path, folder: Path, outdated: Collection[str]) -> None:
    for path in list(old.iterdir()) if old.exists() else ():
        if path.name not in outdated and not os.path.lexists(folder / path.name):
            path.rename(folder / path.name)
