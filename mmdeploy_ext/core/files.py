"""Files that are written atomically, and never over what the same run reads."""

from __future__ import annotations

import contextlib
import contextvars
import glob
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import Mm2OnnxError, ModelFileError, UsageError, printable

if TYPE_CHECKING:
    import onnx


AnyPath = str | os.PathLike[str]

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
DATA_SUFFIXES = (*IMAGE_SUFFIXES, '.onnx', '.data', '.npz', '.npy', '.bin', '.pcd', '.pkl', '.pth')
"""Suffixes of the files in a folder that tools read; their reports have others."""
PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message, such as an ONNX file without its external data, can hold."""
EXPORT_AGAIN = 'export it again, or download it again if it came from elsewhere'
"""Advice in messages about damaged ONNX files."""
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
"""(first bytes, whose case does not count, what is said of a file that begins with them)."""


class RunFiles:
    """What one run of a tool reads and writes, so that nothing that is read is ever written.

    Files are told apart by device and inode where they exist: links and other spellings are one file.
    """

    def __init__(self) -> None:
        """Begin with no file."""
        self._read: dict[object, str] = {}  # `_key` of a path -> its title
        self._written: dict[object, tuple[str, AnyPath]] = {}  # `_key` of a path -> option, path
        self._closed: list[tuple[Path, str]] = []  # folders and ONNX files that `_open` has to look into

    def reads(self, title: str, paths: Iterable[AnyPath]) -> None:
        """Register files that are read, of an ONNX file its external weights, too.

        Of a folder these are the ONNX files at its top; without any, the files with `DATA_SUFFIXES` and the
        `manifest.json` at any depth. Weights and folders are looked up when an output that exists is compared
        with them; one that does not exist cannot be among them.

        Args:
            title: what they are, such as 'the checkpoint', for messages.
            paths: files and folders; they need not exist.

        Raises:
            UsageError: one of them is an output of this run.
        """
        for path in map(Path, paths):
            key = _key(path)
            self._read.setdefault(key, title)
            if path.is_dir() or path.suffix == '.onnx':
                self._closed.append((path, title))
            self._refuse(key, *self._written.get(key, ('', '')))
        if any(isinstance(key, tuple) for key in self._written):
            self._open()

    def writes(self, option: str, paths: Iterable[AnyPath]) -> None:
        """Register files that an option is going to write.

        Args:
            option: name of the option, for messages.
            paths: the files; they need not exist.

        Raises:
            UsageError: a name is empty, of a file that is read, or of what another option writes.
        """
        for path in paths:
            if not str(path).strip():
                raise UsageError(f"{option} '': is not a name; give that of what is written, or leave it out")
            key = _key(path)
            first_option, _ = self._written.setdefault(key, (option, path))
            if first_option != option:
                raise UsageError(f'{option} {path}: is what {first_option} writes, too; give another name')
            self.refuse_read(path, option)

    def refuse_read(self, path: AnyPath, option: str = '') -> None:
        """Refuse to write a file that this run reads.

        Files in a folder that is read, and external weights, are among these; a `path` that is a folder
        passes. `option`, which names `path` on the command line, begins the message of the UsageError.
        """
        if not os.path.isdir(path):
            if os.path.exists(path):
                self._open()
            self._refuse(_key(path), option, path)

    def _refuse(self, key: object, option: str, path: AnyPath) -> None:
        if path and key in self._read:
            raise UsageError(
                f'{option} {path}: is {self._read[key]}; it is never overwritten, give another name'.lstrip()
            )

    def _open(self) -> None:
        """Register the files in folders and the weights of ONNX files, once an output exists already."""
        while self._closed:
            path, title = self._closed.pop()
            if path.is_dir():
                graphs = list(path.glob('*.onnx'))
                self.reads(f'a file of {title}', graphs or filter(_is_data, path.rglob('*')))
            else:
                weights = [path.parent / location for location in sorted(external_locations(path))]
                self.reads(f'the weights of {title}', weights)


def _key(path: AnyPath) -> tuple[int, int] | str:
    """Return device and inode of a file; the real path of one that does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def external_locations(path: Path) -> set[str]:
    """Return the files of the external weights of an ONNX file, as paths relative to its folder.

    The set is empty if the ONNX file cannot be read, or onnx is not installed.
    """
    try:
        return set(_locations(read_onnx(path)))
    except (Mm2OnnxError, ImportError):  # the tool that reads the file reports what is wrong
        return set()


def _locations(message: Any) -> Iterator[str]:
    """Yield the location of every external tensor of a protobuf message, at any depth."""
    if message.DESCRIPTOR.name == 'TensorProto':
        yield from (entry.value for entry in message.external_data if entry.key == 'location')
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in (value,) if hasattr(value, 'DESCRIPTOR') else value:
                yield from _locations(item)


def _is_data(file: Path) -> bool:
    return (file.suffix.lower() in DATA_SUFFIXES or file.name == 'manifest.json') and file.is_file()


_RUN: contextvars.ContextVar[RunFiles] = contextvars.ContextVar('files of this run')


@contextlib.contextmanager
def watched_run() -> Iterator[RunFiles]:
    """Inside the block `will_read` and `will_write` register files, and what a run reads is never written.

    `atomic_path` and `check_writable` refuse it. The files are yielded; a block in a block has its own.
    """
    run = RunFiles()
    token = _RUN.set(run)
    try:
        yield run
    finally:
        _RUN.reset(token)


def will_read(title: str, paths: Iterable[AnyPath]) -> None:
    """Register files that the run of a tool reads; does nothing outside of `watched_run`.

    Arguments and errors are those of `RunFiles.reads`.
    """
    if (run := _RUN.get(None)) is not None:
        run.reads(title, paths)


def will_write(option: str, paths: Iterable[AnyPath]) -> None:
    """Register files that the run of a tool is going to write; does nothing outside of `watched_run`.

    Arguments and errors are those of `RunFiles.writes`.
    """
    if (run := _RUN.get(None)) is not None:
        run.writes(option, paths)


def check_outputs(outputs: Mapping[str, Iterable[AnyPath]], inputs: Mapping[str, Iterable[AnyPath]]) -> None:
    """Refuse outputs that are inputs of the same call, independently of the run of a tool.

    Args:
        outputs: option -> files that it names.
        inputs: title of files -> files that are read.

    Raises:
        UsageError: an output is an input, has no name, or is what another option writes.
    """
    run = RunFiles()
    for title, paths in inputs.items():
        run.reads(title, paths)
    for option, paths in outputs.items():
        run.writes(option, paths)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the number of none, or too large for one
        return False
    except PermissionError:  # a process of another user
        pass
    return True


def _remove_stale(target: Path) -> None:
    """Remove the temporary files and folders that killed processes left beside `target`."""
    for leftover in target.parent.glob(f'.{glob.escape(target.name)}.*.part'):
        pid = leftover.name.rsplit('.', 2)[-2]
        if pid.isdigit() and _is_running(int(pid)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _refuse_read(target: Path) -> None:
    if (run := _RUN.get(None)) is not None:
        run.refuse_read(target)


def write_error(target: AnyPath, error: OSError) -> Mm2OnnxError:
    """Return the error of a file or folder that could not be written; `error` is what the system raised."""
    return Mm2OnnxError(
        f'{target}: could not be written ({error.strerror or error}); free some space or choose another '
        f'folder'
    )


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a temporary file beside `target`, renamed to it on success and removed on failure.

    The folder of the target is made, with its parents, when it is missing, and stays on failure. A link is
    replaced, not what it leads to.

    Raises:
        UsageError: `target` is a file that this run reads.
        Mm2OnnxError: an OSError, here or in the body, such as a full disk, or that of a body that writes no
            file; `target` is as it was before.
    """
    target = Path(target)
    _refuse_read(target)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(target: str | os.PathLike[str], content: Any) -> None:
    """Write `content`, of plain JSON types, to `target` as indented JSON; `atomic_path` has the errors."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; UsageError: it is missing or damaged, or cannot be read; the message names it."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file') from error
    except OSError as error:
        raise UsageError(f'{path}: cannot be read ({error.strerror or error})') from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{path}: is not valid JSON ({error})') from error


def check_onnx_size(path: AnyPath) -> None:
    """Refuse an ONNX file that is larger than any can be, before it is read into memory.

    Raises:
        ModelFileError: it has more than `PROTOBUF_LIMIT` bytes.
        OSError: it cannot be looked at.
    """
    if (size_bytes := os.stat(path).st_size) > PROTOBUF_LIMIT:
        raise ModelFileError(
            f'{printable(path)}: has {size_bytes} bytes, expected an ONNX file of at most {PROTOBUF_LIMIT}, '
            f'which is what protobuf can hold; larger models have their weights in a file beside it'
        )


def described_kind(path: AnyPath, *expected: str) -> str:
    """Return what a file is that is not of the kind that was expected, such as 'is a PNG picture'.

    It is told by the first bytes, see `MAGICS`.

    Args:
        path: path of a file.
        expected: words of descriptions that say nothing about this file, because it should be of that kind.

    Returns:
        The description, 'is empty' of a file without bytes; '' if it cannot be read, or its first bytes tell
        nothing.
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
    """Read an ONNX file as it is, broken graphs too, without its external data.

    Raises:
        ModelFileError: no such file, one that cannot be read or is larger than protobuf can hold, or no ONNX
            file.
    """
    import onnx

    try:
        check_onnx_size(path)
        if not os.stat(path).st_size:
            raise ModelFileError(f'{path}: is empty, expected an ONNX file; {EXPORT_AGAIN}')
        return onnx.load(os.fspath(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f'{path}: no such ONNX file') from error
    except IsADirectoryError as error:
        raise ModelFileError(f'{path}: is a folder, expected an ONNX file') from error
    except PermissionError as error:
        raise ModelFileError(f'{path}: may not be read; change its permissions') from error
    except (ModelFileError, UsageError):
        raise
    except OSError as error:
        raise ModelFileError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:  # of protobuf, by the ending of the file's name
        if kind := described_kind(path, 'ONNX'):
            raise ModelFileError(f'{path}: is not a readable ONNX file: it {kind}') from error
        raise ModelFileError(
            f'{path}: is not a readable ONNX file ({type(error).__name__}); it was cut short, or is of '
            f'another kind: {EXPORT_AGAIN}'
        ) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits; OSError: it cannot be read."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def sha256_onnx(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of an ONNX file, by which its weights are known, too, if they lie beside it.

    Without external data it is that of the file, else that of a text of the digests of all these files. A
    file of weights that is missing has no digest. OSError: one that is there, or the ONNX file, cannot be
    read.
    """
    path, digests = Path(path), [sha256_file(path)]
    for location in sorted(external_locations(path)):
        data = path.parent / location
        digests.append(f'{location} {sha256_file(data) if data.is_file() else ""}')
    return digests[0] if len(digests) == 1 else hashlib.sha256('\n'.join(digests).encode()).hexdigest()


def check_writable(target: str | os.PathLike[str]) -> None:
    """Refuse an output path that cannot be written, before hours are spent on making its content.

    Neither it nor its folder need exist, and none is made.

    Raises:
        UsageError: the name is empty, too long or has a character 0, the folder is read-only or may not be
            looked into, a folder or device stands where the file should be, or a file where a folder should
            be, or this run reads the file.
    """
    if not str(target).strip():
        raise UsageError("'': is not the name of a file to write")
    if '\0' in str(target):
        raise UsageError(f'{str(target)!r}: has a character 0, which no name of a file has')
    target = Path(target)
    _refuse_read(target)
    try:
        if target.is_dir():
            raise UsageError(f'{target}: is a folder; give the name of a file')
        if target.exists() and not target.is_file():
            raise UsageError(
                f'{target}: is a device or pipe, which would be replaced; give the name of a file'
            )
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UsageError(f'{target}: cannot be written ({error.strerror}); give another name') from error
    if not folder.is_dir():
        raise UsageError(f'{target}: {folder} is a file, not a folder')
    probe = folder / f'.{target.name}.probe.{threading.get_ident()}.{os.getpid()}.part'
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f'{target}: the folder {folder} cannot be written ({error.strerror}); '
            f'choose another one or change its permissions'
        ) from error
