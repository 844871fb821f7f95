"""Folders that are replaced as a whole: a process that is killed leaves the old one or the new one."""

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.core.files import AnyPath, check_writable, write_error

PATIENCE_S = 60.0
"""How long a process waits for another one that is writing the same folder."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's <fcntl.h>."""
NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
"""Errors of a system or a file system that cannot exchange two folders."""
NEW, OLD, FACTS = 'new', 'old', 'facts.json'
"""Names in the folder beside the target: the new folder, the old one, and a JSON file of the inode of the new
one and the names that it does not take from the old one."""


def resolved(target: AnyPath) -> Path:
    """Return the absolute path of a file or folder, links followed.

    UsageError: a link leads back to itself.
    """
    try:
        return Path(target).resolve()
    except RuntimeError as error:
        raise UsageError(
            f'{target}: is a link that leads back to itself; remove it, or name another'
        ) from error


def check_replaceable(target: AnyPath) -> None:
    """Refuse a folder that cannot be replaced as a whole, or made if it is missing; none is made here.

    Raises:
        UsageError: it is a file, the working folder, a mount point or a link that leads back to itself, or
            it, or what is beside it, cannot be written.
    """
    folder = resolved(target)
    _check_kind(target)
    check_writable(folder.with_name(f'.{folder.name}.lock'))


def check_new_folder(folder: Path) -> None:
    """Refuse (UsageError) a folder to write that is a file or beneath one, or has anything in it."""
    above = next((parent for parent in folder.parents if parent.exists()), folder.parent)
    if above.is_file():
        raise UsageError(f'{folder}: {above} is a file; name a new folder')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        got = 'is not empty' if folder.is_dir() else 'is a file'
        raise UsageError(f'{folder}: {got}; name a new folder')


def _check_kind(target: AnyPath) -> None:
    folder = resolved(target)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'{target}: is a file, expected a folder')
    if folder.is_dir() and (folder.samefile(os.curdir) or os.path.ismount(folder)):
        kind = 'the working folder' if folder.samefile(os.curdir) else 'a mount point'
        raise UsageError(
            f'{target}: is {kind}; a folder of graphs is replaced as a whole, so give the name of one in it: '
            f'{Path(target) / "graphs"}'
        )
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f'{target}: cannot be written; change its permissions, or choose another folder')


@contextlib.contextmanager
def replaced_folder(
    target: AnyPath, outdated: Collection[str] = (), patience_s: float = PATIENCE_S
) -> Iterator[Path]:
    """Yield a new, empty folder that takes the place of `target` if the body succeeds.

    That is one step on Linux; elsewhere, and on file systems that cannot do it, two renames, between which
    there is no `target`. The old folder stays until then. The new one gets the files and folders of the old
    one, apart from names at its top that the body has written and those that are outdated; folders are not
    merged. Processes that write the same folder wait for each other, but for Windows. What a killed process
    has left beside the folder is put back or removed by the next one that writes it, and by this one after
    an exception or Ctrl-C.

    Args:
        target: the folder; a link to one is followed. Missing ones above it are made.
        outdated: names of files and folders at the top of the old folder that are not kept.
        patience_s: seconds to wait for another process; 0 to try once.

    Raises:
        UsageError: the folder is a file, the working folder, a mount point, a link that leads back to itself
            or cannot be written, a folder in it that is to be kept cannot be moved, or another process is
            writing it for more than `patience_s`.
        Mm2OnnxError: an OSError, here or in the body; `target` is as it was before, unless the message says
            where what could not be moved is. Other exceptions of the body go through.
    """
    _check_kind(target)
    folder = resolved(target)
    beside = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, patience_s):
            left_by_killed = re.compile(rf'\.{re.escape(folder.name)}\.\d+\.part')
            for path in list(folder.parent.iterdir()):
                if left_by_killed.fullmatch(path.name) and path.is_dir():
                    _settle(path, folder)
            _check_movable(folder, outdated)
            (beside / NEW).mkdir(parents=True)
            try:
                yield beside / NEW
                _move_in(beside, folder, outdated)
                _settle(beside, folder)
            finally:  # after an exception or Ctrl-C anywhere above
                _settle(beside, folder)
    except OSError as error:
        raise write_error(target, error) from error


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; return False if the system or file system cannot.

    Both exist, on one file system; any other fault is an OSError.
    """
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


def _check_movable(folder: Path, outdated: Collection[str]) -> None:
    """Refuse (UsageError) a folder with folders that cannot be moved into the new one."""
    for path in folder.iterdir() if folder.exists() else ():
        is_fixed = _is_folder(path) and (os.path.ismount(path) or not os.access(path, os.W_OK | os.X_OK))
        if is_fixed and path.name not in outdated:
            raise UsageError(
                f'{path}: is a mount point or cannot be written, so that {folder} cannot be replaced; '
                f'choose another folder, or move it away'
            )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _move_in(beside: Path, folder: Path, outdated: Collection[str]) -> None:
    """Put the new folder, with the files that are kept, in the place of the old one."""
    new = beside / NEW
    if not folder.exists():
        new.rename(folder)
        return
    shutil.copymode(folder, new)
    replaced_names = {*os.listdir(new), *outdated}
    for path in folder.iterdir():
        if path.name not in replaced_names and not _is_folder(path):
            try:
                os.link(path, new / path.name, follow_symlinks=False)
            except FileExistsError:  # the body has written it, in other letters
                continue
            except OSError:  # a file system without links
                shutil.copy2(path, new / path.name, follow_symlinks=False)
    facts = json.dumps([os.stat(new).st_ino, sorted(replaced_names)])
    (beside / FACTS).write_text(facts, encoding='utf-8')
    if not exchange(new, folder):
        folder.rename(beside / OLD)
        new.rename(folder)


def _settle(beside: Path, folder: Path) -> None:
    """Remove what is beside a folder, when the old folder or what the new one lacks of it is in its place.

    Files were in the new folder from the beginning, folders come after it is in its place.
    """
    aside, facts = beside / OLD, []
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    with contextlib.suppress(FileNotFoundError, ValueError):  # it is written before anything is moved
        facts = json.loads((beside / FACTS).read_text(encoding='utf-8'))
    old = aside if aside.exists() else beside / NEW
    if facts and old.is_dir() and folder.exists() and os.stat(folder).st_ino == facts[0]:
        for path in old.iterdir():
            if path.name not in facts[1] and _is_folder(path) and not os.path.lexists(folder / path.name):
                try:
                    path.rename(folder / path.name)
                except OSError as error:
                    reason = error.strerror or error
                    raise Mm2OnnxError(
                        f'{path}: could not be moved into {folder} ({reason}); move it yourself'
                    ) from error
    shutil.rmtree(beside, ignore_errors=True)
