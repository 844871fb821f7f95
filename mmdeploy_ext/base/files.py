"""Atomic writes, never over files that the same run reads."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import (
    UNPRINTABLE,
    DataError,
    Mm2OnnxError,
    ModelFileError,
    UsageError,
    shortened,
)
from mmdeploy_ext.base.typed_json import parse_json

if TYPE_CHECKING:
    import onnx


# Names of files that a file's content gives: nothing outside of the file's folder is read or written.


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


AnyPath = str | os.PathLike[str]

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
PROTOBUF_LIMIT = 2**31 - 1
"""Largest protobuf message, in bytes."""
EXPORT_AGAIN = 'export it again, or download it again if it came from elsewhere'
MAGICS = (
    (b'version https://git-lfs', 'is a pointer of Git LFS; `git lfs pull` brings the file itself'),
    (b'PK\x03\x04', 'is a ZIP archive, as checkpoints of PyTorch are'),
    (b'\x80\x02\x8a\nl\xfc\x9cF', 'is a checkpoint of PyTorch'),
    (b'\xff\xd8\xff', 'is a JPEG picture'),
    (b'\x89PNG\r\n', 'is a PNG picture'),
    (b'<!doctype html', 'is a page of the web; download the file itself'),
    (b'<html', 'is a page of the web; download the file itself'),
    *((bytes((8, ir_version)), 'is an ONNX file, by its first bytes') for ir_version in range(3, 20)),
)
"""(first bytes in any case, description of such a file)."""


class RunFiles:
    """Files that one run reads and writes; an input is never written, also by a link."""

    def __init__(self) -> None:
        self._read: dict[object, str] = {}  # `_key` of a path -> its title
        self._written: dict[object, str] = {}  # `_key` of a path -> option

    def reads(self, title: str, paths: Iterable[AnyPath]) -> None:
        """Register inputs, named `title` in messages."""
        for path in paths:
            self._read.setdefault(_key(path), title)
            if (option := self._written.get(_key(path))) and not is_special(path):
                self.refuse_read(path, option)

    def writes(self, option: str, paths: Iterable[AnyPath]) -> None:
        """Register outputs of an option."""
        for path in paths:
            if not str(path).strip():
                raise UsageError(f"{option} '': expected a name; give one, or leave the option out")
            first_option = self._written.setdefault(_key(path), option)
            if first_option != option and not is_special(path):
                raise UsageError(f'{option} {path}: {first_option} writes this file, too; give another name')
            self.refuse_read(path, option)

    def refuse_read(self, path: AnyPath, option: str = '') -> None:
        """Raise UsageError if `path` is an input of this run; a folder passes."""
        if not os.path.isdir(path) and (title := self._read.get(_key(path))):
            raise UsageError(
                f'{option} {path}: is {title}; it is not overwritten; give another name'.lstrip()
            )


def _key(path: AnyPath) -> tuple[int, int] | str:
    real = os.path.realpath(path)  # also of NEW/../in.onnx, where NEW is to be made
    for name in (path, real):
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(name)
            return status.st_dev, status.st_ino
    return real


def is_special(path: AnyPath) -> bool:
    """Return whether a path is a device, a pipe, a socket or this program's output: written, not replaced."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    is_ordinary = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return not is_ordinary or _own_stream(status) is not None


def _own_stream(status: os.stat_result) -> int | None:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def external_locations(path: Path) -> set[str]:
    """Relative paths of an ONNX file's external weights below its folder; empty if it cannot be read."""
    try:
        return {name for name in _locations(read_onnx(path)) if not name_problem(name, below=True)}
    except (Mm2OnnxError, ImportError):  # the tool that reads the file reports what is wrong
        return set()


def _locations(message: Any) -> Iterator[str]:
    if message.DESCRIPTOR.name == 'TensorProto':
        yield from (entry.value for entry in message.external_data if entry.key == 'location')
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in (value,) if hasattr(value, 'DESCRIPTOR') else value:
                yield from _locations(item)


_RUN: contextvars.ContextVar[RunFiles] = contextvars.ContextVar('files of this run')


@contextlib.contextmanager
def watched_run() -> Iterator[RunFiles]:
    """Yield the files of the run; writes inside the block respect them."""
    run = RunFiles()
    token = _RUN.set(run)
    try:
        yield run
    finally:
        _RUN.reset(token)


def will_write(option: str, paths: Iterable[AnyPath]) -> None:
    """`RunFiles.writes` of the current run; does nothing outside of `watched_run`."""
    if (run := _RUN.get(None)) is not None:
        run.writes(option, paths)


def will_read(title: str, paths: Iterable[AnyPath]) -> None:
    """`RunFiles.reads` of the current run, of inputs that the command line does not name."""
    if (run := _RUN.get(None)) is not None:
        run.reads(title, paths)


def check_outputs(outputs: Mapping[str, Iterable[AnyPath]], inputs: Mapping[str, Iterable[AnyPath]]) -> None:
    """Raise UsageError if an output (option -> files) is an input (title -> files) of the same call."""
    run = RunFiles()
    for title, paths in inputs.items():
        for path in map(Path, paths):
            run.reads(title, [path])
            if path.suffix == '.onnx':
                weights = external_locations(path)
                run.reads(f'the weights of {title}', [path.parent / location for location in weights])
    for option, paths in outputs.items():
        run.writes(option, paths)


def _refuse_read(target: Path) -> None:
    if (run := _RUN.get(None)) is not None:
        run.refuse_read(target)


def write_error(target: AnyPath, error: OSError) -> Mm2OnnxError:
    advice = 'choose another folder'
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f'free some space or {advice}'
    elif error.errno == errno.ENOENT:
        advice = 'another program has moved or removed its folder; write it again'
    return Mm2OnnxError(f'{target}: could not be written ({error.strerror or error}); {advice}')


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to it on success and removed on failure.

    The target of a link is written, and an older file's permissions stay. What `is_special` gets the content
    on success.

    UsageError: `target` is an input of this run, or read-only. Mm2OnnxError: an OSError here or in the body.
    """
    _refuse_read(Path(target))
    refuse_read_only(target)
    real = Path(os.path.realpath(target))
    try:
        if is_special(target):
            with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
                yield Path(folder, 'content')
                _write_through(Path(folder, 'content'), target)
            return
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _new_file_beside(real)
        try:
            yield temporary
            if real.is_file():
                shutil.copymode(real, temporary)
            os.replace(temporary, real)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(target, error) from error


def _new_file_beside(path: Path) -> Path:
    """Create an empty file with a name that nobody can know before, such as for a link to another file."""
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _write_through(content: Path, target: AnyPath) -> None:
    sys.stdout.flush()
    own = _own_stream(os.stat(target))  # a second description of a file would overwrite what is printed
    with content.open('rb') as stream, open(target if own is None else os.dup(own), 'wb') as end:
        shutil.copyfileobj(stream, end)


def refuse_read_only(target: AnyPath) -> None:
    """Raise UsageError for a file or folder that this user, or nobody (root is not asked), may write."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):  # a new one; other reasons show when it is written
        return
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise UsageError(
            f'{target}: is read-only (mode {stat.S_IMODE(mode):o}); give another name, or permit to write it '
            f'(chmod u+w)'
        )


def write_json(target: str | os.PathLike[str], content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_json(path: str | os.PathLike[str]) -> Any:
    try:
        return parse_json(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file') from error
    except OSError as error:
        raise UsageError(f'{path}: cannot be read ({error.strerror or error})') from error
    except ValueError as error:
        raise UsageError(f'{path}: is not valid JSON ({error})') from error


def described_kind(path: AnyPath, *expected: str) -> str:
    """Describe a file by its first bytes, such as 'is a PNG picture', or ''.

    Descriptions with a word of `expected` are left out.
    """
    try:
        with open(path, 'rb') as stream:
            beginning = stream.read(64)
    except (OSError, ValueError):  # ValueError: a path with a character 0
        return ''
    if not beginning:
        return 'is empty'
    begins = beginning.lstrip().lower()
    descriptions = (text for magic, text in MAGICS if begins.startswith(magic.lower()))
    return next((text for text in descriptions if not any(word in text for word in expected)), '')


def read_onnx(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file, also with a broken graph, without its external data."""
    import onnx

    check_onnx_file(path)
    try:
        return onnx.load(os.fspath(path), load_external_data=False)
    except OSError as error:
        raise ModelFileError(f'{path}: cannot be read ({error.strerror or error})') from error
    except Exception as error:  # of protobuf
        raise unreadable_onnx(path, error) from error


def check_onnx_file(path: AnyPath) -> None:
    """Raise ModelFileError for a path that is no ONNX file, by its size of 1 byte to `PROTOBUF_LIMIT`."""
    if os.path.isdir(path):
        raise ModelFileError(f'{path}: is a folder, expected an ONNX file')
    if not os.path.isfile(path):
        is_there = os.path.exists(path)
        reason = 'is a pipe or a device, expected a file' if is_there else 'no such ONNX file'
        raise ModelFileError(f'{path}: {reason}')
    if not os.access(path, os.R_OK):
        raise ModelFileError(f'{path}: cannot be read: you have no permission')
    size_bytes = os.path.getsize(path)
    if not size_bytes:
        raise ModelFileError(f'{path}: is empty, expected an ONNX file; {EXPORT_AGAIN}')
    if size_bytes > PROTOBUF_LIMIT:
        raise ModelFileError(
            f'{path}: has {size_bytes} bytes, expected an ONNX file of at most {PROTOBUF_LIMIT}; larger '
            f'models have their weights in a file beside it'
        )


def unreadable_onnx(path: AnyPath, error: Exception) -> ModelFileError:
    if kind := described_kind(path, 'ONNX'):
        return ModelFileError(f'{path}: is not a readable ONNX file: it {kind}')
    return ModelFileError(
        f'{path}: is not a readable ONNX file ({type(error).__name__}); it was cut short, or is of another '
        f'kind: {EXPORT_AGAIN}'
    )


def sha256_file(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_onnx(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hexadecimal) of an ONNX file and its external weights."""
    path, digests = Path(path), [sha256_file(path)]
    for location in sorted(external_locations(path)):
        data = path.parent / location
        digests.append(f'{location} {sha256_file(data) if data.is_file() else ""}')
    return digests[0] if len(digests) == 1 else hashlib.sha256('\n'.join(digests).encode()).hexdigest()


LONGEST_NAME = 255 - len('..01234567.part')
"""Bytes of a file name of which `atomic_path` makes its own."""


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise UsageError if an output cannot be written, or is an input of this run."""
    if not str(target).strip():
        raise UsageError("'': is not the name of a file to write")
    target = Path(target)
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UsageError(f'{target}: the name has more than {LONGEST_NAME} bytes; give a shorter one')
    _refuse_read(target)
    if target.is_dir():
        raise UsageError(f'{target}: is a folder; give the name of a file')
    refuse_read_only(target)
    if is_special(target):
        return
    real = Path(os.path.realpath(target))
    folder = next(parent for parent in real.parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f'{target}: {folder} is a file, not a folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f'{target}: the folder {folder} cannot be written; choose another one or change its permissions'
        )


def use_writable_cache() -> None:
    """Have libraries (numba, yapf) cache below TMPDIR where the user has no home folder to write to."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))
    nearest = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), cache)
    if not cache.is_absolute() or not os.access(nearest, os.W_OK | os.X_OK):
        os.environ['XDG_CACHE_HOME'] = _own_cache(os.path.join(tempfile.gettempdir(), f'cache-{os.getuid()}'))


def _own_cache(folder: str) -> str:
    """Return `folder`, or a new one if other users could write code into it."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
        return tempfile.mkdtemp(prefix='cache-')
    except OSError:  # nothing can be written
        return folder


# Folders whose files are replaced together: written beside their places, then moved under a lock.


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
