"""Folders that are replaced as a whole: written beside their place, then renamed."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from mmdeploy_ext.util.errors import UsageError
from mmdeploy_ext.util.files import (
    AnyPath,
    check_writable,
    is_special,
    read_json,
    refuse_read_only,
    write_error,
    write_json,
)

NEW, OLD, KEPT, WHOLE = 'new', 'old', 'kept.json', 'whole'
"""In `.NAME.RANDOM.part`: the folder that is written; the former one; names of its entries that stay; files
that are written and only have to be moved.
"""


def check_replaceable(target: AnyPath) -> None:
    """Raise UsageError for a file, the working folder, a mount point or a read-only folder."""
    folder = Path(target).resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'{target}: is a file, expected a folder')
    if folder == Path.cwd() or os.path.ismount(folder):
        kind = 'the working folder' if folder == Path.cwd() else 'a mount point'
        raise UsageError(
            f'{target}: is {kind}; the folder is replaced as a whole, so give the name of one in it: '
            f'{Path(target) / "graphs"}'
        )
    refuse_read_only(folder)
    check_writable(folder.with_name(f'.{folder.name}.part'))


def check_new_folder(folder: Path) -> None:
    """Raise UsageError unless the folder is missing or empty."""
    above = next((parent for parent in folder.parents if parent.exists()), folder.parent)
    if above.is_file():
        raise UsageError(f'{folder}: {above} is a file; name a new folder')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        got = 'is not empty' if folder.is_dir() else 'is a file'
        raise UsageError(f'{folder}: {got}; name a new folder')


def check_replaceable_file(path: Path) -> None:
    """Raise UsageError for a file of a folder that is read-only, a link, a device or a pipe."""
    refuse_read_only(path)
    if path.is_symlink() or is_special(path):
        kind = 'a link' if path.is_symlink() else 'no regular file'
        raise UsageError(
            f'{path}: is {kind}, and its folder is replaced as a whole; remove it, or choose another folder'
        )


@contextlib.contextmanager
def replaced_folder(target: AnyPath, outdated: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` if the body succeeds.

    Other entries of the old folder stay, except names in `outdated`. Files keep their permissions. What a
    killed process has left beside the target comes back first, see `restore_interrupted`.
    """
    restore_interrupted([target])
    check_replaceable(target)
    folder = Path(target).resolve()
    for name in outdated:
        check_replaceable_file(folder / name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp('.part', f'.{folder.name}.', folder.parent))
        try:
            (beside / NEW).mkdir()
            yield beside / NEW
            _exchange(folder, beside, outdated)
        except BaseException:
            if not (beside / OLD).exists():  # else `restore_interrupted` needs it
                shutil.rmtree(beside)
            raise
        _move_kept(beside, folder)
        shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise write_error(target, error) from error


@contextlib.contextmanager
def replaced_files(target: Path) -> Iterator[Path]:
    """Yield an empty folder; its files take their places beside `target` if the body succeeds.

    If this process is killed between two of them, `restore_interrupted` of `target` moves the rest.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp('.part', f'.{target.name}.', target.parent))
        try:
            (beside / NEW).mkdir()
            yield beside / NEW
            for path in (beside / NEW).iterdir():
                if (earlier := target.with_name(path.name)).is_file():
                    shutil.copymode(earlier, path)
            (beside / NEW).rename(beside / WHOLE)
        except BaseException:
            shutil.rmtree(beside)
            raise
        _move_whole(beside)
    except OSError as error:
        raise write_error(target, error) from error


def _move_whole(beside: Path) -> None:
    for path in (beside / WHOLE).iterdir():
        path.replace(beside.parent / path.name)
    shutil.rmtree(beside)


def _exchange(folder: Path, beside: Path, outdated: Collection[str]) -> None:
    new, old = beside / NEW, beside / OLD
    if folder.exists():
        for path in (file for file in new.rglob('*') if file.is_file()):
            earlier = folder / path.relative_to(new)
            if os.path.lexists(earlier):
                check_replaceable_file(earlier)
                shutil.copymode(earlier, path)
        names = {path.name for path in folder.iterdir()} - {path.name for path in new.iterdir()}
        write_json(beside / KEPT, sorted(names - set(outdated)))
        shutil.copymode(folder, new)
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _move_kept(beside: Path, folder: Path) -> None:
    for name in read_json(beside / KEPT) if (beside / KEPT).is_file() else ():
        if os.path.lexists(beside / OLD / name):
            (beside / OLD / name).rename(folder / name)


def restore_interrupted(paths: Iterable[AnyPath]) -> None:
    """Finish what a process that was killed in `replaced_folder` or `replaced_files` has left, and say so.

    `paths`: folders, or files in them. A folder that is missing is the former one again; one that was
    replaced gets its other entries; files that were written get their places.
    """
    real = (Path(os.path.realpath(path)) for path in paths if '\0' not in str(path))
    folders = {folder for path in real for folder in (path, path.parent)}
    for parent in {folder.parent for folder in folders}:
        with contextlib.suppress(OSError):  # of a word that is no path
            for beside in parent.glob('.*.part'):
                folder = parent / beside.name[1:].removesuffix('.part').rpartition('.')[0]
                if folder in folders and (beside / OLD).is_dir():
                    _restore(beside, folder)
                elif folder in folders and (beside / WHOLE).is_dir():
                    _move_whole(beside)
                    text = 'a command that was to replace it was killed; the new files are in their places'
                    print(f'note: {folder}: {text}', file=sys.stderr)


def _restore(beside: Path, folder: Path) -> None:
    if folder.exists():
        _move_kept(beside, folder)
        text = 'was replaced by a command that was killed; its other files are in it again'
    else:
        (beside / OLD).rename(folder)
        text = 'a command that was to replace it was killed; the former folder is in its place again'
    print(f'note: {folder}: {text}', file=sys.stderr)
    shutil.rmtree(beside, ignore_errors=True)
