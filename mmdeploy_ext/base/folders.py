"""Folders whose files are replaced together: written beside their places, then moved under a lock."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from mmdeploy_ext.base.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.base.files import AnyPath, check_writable, is_special, refuse_read_only, write_error

LONGEST_WAIT_S = 20.0
"""For another command that moves its files into the same folder, which takes milliseconds."""


def check_replaceable(target: AnyPath) -> None:
    """Raise UsageError for a file, a mount point or a read-only folder."""
    folder = Path(target).resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'{target}: is a file, expected a folder')
    if os.path.ismount(folder):
        raise UsageError(
            f'{target}: is a mount point, and its files are written beside it first; give the name of a '
            f'folder in it: {Path(target) / "graphs"}'
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
            f'{path}: is {kind}, and the files of its folder are replaced together; remove it, or choose '
            f'another folder'
        )


def _check_place(folder: Path, name: Path) -> None:
    for path in (folder / name, *(folder / above for above in name.parents[:-1])):
        check_replaceable_file(path)
        if path.exists() and path.is_dir() != (path != folder / name):
            kind = 'a folder' if path.is_dir() else 'a file'
            raise UsageError(f'{path}: is {kind}; remove it, or choose another folder')


@contextlib.contextmanager
def replaced_folder(target: AnyPath, outdated: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files take their places in `target` if the body succeeds.

    Other files of `target` are not touched, except `outdated`, which are removed. Files keep their
    permissions.
    """
    check_replaceable(target)
    folder = Path(target).resolve()
    for name in outdated:
        _check_place(folder, Path(name))
    with _placed(folder, folder, outdated) as new:
        yield new


@contextlib.contextmanager
def replaced_files(target: Path) -> Iterator[Path]:
    """Yield an empty folder; its files take their places beside `target` if the body succeeds."""
    with _placed(target.parent, target, ()) as new:
        yield new


@contextlib.contextmanager
def _placed(folder: Path, beside: Path, outdated: Collection[str]) -> Iterator[Path]:
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp('.part', f'.{beside.name}.', beside.parent))
        try:
            yield new
            names = sorted(path.relative_to(new) for path in new.rglob('*') if not path.is_dir())
            for name in names:
                _check_place(folder, name)
                if (folder / name).exists():
                    shutil.copymode(folder / name, new / name)
            folder.mkdir(exist_ok=True)
            with locked(folder):
                try:
                    _move(new, folder, names, outdated)
                except KeyboardInterrupt:
                    _move(new, folder, names, outdated)
                    raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise write_error(beside, error) from error


def _move(new: Path, folder: Path, names: Collection[Path], outdated: Collection[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (new / name).exists():  # else an interrupted call has moved it
            (new / name).replace(folder / name)
    for name in {Path(name) for name in outdated}.difference(names):
        (folder / name).unlink(missing_ok=True)
        for above in name.parents[:-1]:
            with contextlib.suppress(OSError):  # it has files of the user
                (folder / above).rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time move files into a folder; Mm2OnnxError after `LONGEST_WAIT_S`.

    Nothing is locked where the file system has no locks.
    """
    descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + LONGEST_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise Mm2OnnxError(
                        f'{folder}: another process has locked it for {LONGEST_WAIT_S:.0f} s; wait until it '
                        f'ends, or choose another folder'
                    ) from error
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
