"""Folders that are replaced as a whole: a process that is killed leaves the old one or the new one."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import AnyPath, check_writable, write_error

PATIENCE_S = 60.0
"""How long a process waits for another one that is writing the same folder."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's <fcntl.h>."""
NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
"""Errors of a system or a file system that cannot exchange two folders."""
NEW, OLD, INODE = 'new', 'old', 'inode'
"""Names in the folder beside the target: the new folder, the old one, and the inode of the new one."""


def check_replaceable(target: AnyPath) -> None:
    """Refuse a folder that cannot be replaced as a whole.

    Raises:
        UsageError: it is the working folder or a mount point, or nothing can be written beside it.
    """
    folder = Path(target).resolve()
    check_writable(folder.with_name(f'.{folder.name}.lock'))
    if folder.is_dir() and (folder.samefile(os.curdir) or os.path.ismount(folder)):
        kind = 'the working folder' if folder.samefile(os.curdir) else 'a mount point'
        raise UsageError(
            f'{target}: is {kind}; a folder of graphs is replaced as a whole, so give the name of one in it: '
            f'{Path(target) / "graphs"}'
        )


@contextlib.contextmanager
def replaced_folder(
    target: AnyPath, outdated: Collection[str] = (), patience_s: float = PATIENCE_S
) -> Iterator[Path]:
    """Yield a new, empty folder that takes the place of `target` in one step if the body succeeds.

    The old folder stays until then. The new one gets what the old one held, apart from names that the body
    has written and those that are outdated. Processes that write one folder wait for each other. What a
    killed process has left beside the folder is removed by the next one that writes it.

    Args:
        target: the folder; a link to one is followed.
        outdated: names of files and folders in the old folder that are not kept.
        patience_s: seconds to wait for another process.

    Raises:
        UsageError: another process is writing the folder for longer than that.
        Mm2OnnxError: it could not be written; `target` is as it was before.
    """
    folder = Path(target).resolve()
    beside = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, patience_s):
            _clear_leftovers(folder)
            (beside / NEW).mkdir(parents=True)
            try:
                yield beside / NEW
                _move_in(beside, folder, outdated)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise write_error(target, error) from error


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; return False if the system or file system cannot."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if not function(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE):
        return True
    error_number = ctypes.get_errno()
    if error_number in NOT_SUPPORTED:
        return False
    raise OSError(error_number, os.strerror(error_number), str(second))


@contextlib.contextmanager
def _locked(folder: Path, patience_s: float) -> Iterator[None]:
    """Let one process at a time in; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path, end = folder.with_name(f'.{folder.name}.lock'), time.monotonic() + patience_s
    while True:
        stream = open(path, 'w')  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                break  # else the process that had it has removed the file meanwhile
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > end:
                stream.close()
                raise UsageError(
                    f'{folder}: another process is writing this folder; wait for it, or give another name'
                ) from None
            time.sleep(0.05)
        stream.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        stream.close()


def _move_in(beside: Path, folder: Path, outdated: Collection[str]) -> None:
    """Put the new folder in the place of the old one."""
    new = beside / NEW
    if not folder.exists():
        new.rename(folder)
        return
    shutil.copymode(folder, new)
    replaced_names = {*os.listdir(new), *outdated}
    for path in folder.iterdir():
        if path.name not in replaced_names and (path.is_symlink() or not path.is_dir()):
            try:
                os.link(path, new / path.name, follow_symlinks=False)
            except OSError:  # a file system without links
                shutil.copy2(path, new / path.name, follow_symlinks=False)
    (beside / INODE).write_text(str(os.stat(new).st_ino), encoding='utf-8')
    if not exchange(new, folder):
        folder.rename(beside / OLD)
        new.rename(folder)
    _keep((path for path in _old(beside).iterdir() if path.name not in replaced_names), folder)


def _old(beside: Path) -> Path:
    """Return the path of the old folder after the new one has taken its place."""
    return beside / (OLD if (beside / OLD).exists() else NEW)


def _keep(paths: Iterable[Path], folder: Path) -> None:
    """Move files that only the old folder has into the new one."""
    for path in paths:
        if not os.path.lexists(folder / path.name):
            path.rename(folder / path.name)


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed processes have left beside a folder, and put back what they have moved away."""
    name = re.compile(rf'\.{re.escape(folder.name)}\.\d+\.part')
    for beside in [path for path in folder.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]:
        if (beside / OLD).exists() and not folder.exists():
            (beside / OLD).rename(folder)
        inode, old = beside / INODE, _old(beside)
        new_inode = inode.read_text(encoding='utf-8') if inode.is_file() and folder.exists() else ''
        if old.is_dir() and new_inode and new_inode == str(os.stat(folder).st_ino):
            # files were in the new folder from the beginning, folders come after it is in its place
            _keep((path for path in old.iterdir() if path.is_dir()), folder)
        shutil.rmtree(beside, ignore_errors=True)
