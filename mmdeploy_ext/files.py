"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.errors import Mm2OnnxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(target: Path) -> None:
    """Remove the temporary files that killed processes left beside `target`."""
    for leftover in target.parent.glob(f'.{glob.escape(target.name)}.*.part'):
        pid = leftover.name.rsplit('.', 2)[-2]
        if not pid.isdigit() or not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target` that is renamed to it on success and removed on failure.

    Args:
        target: file to write. Its folder is made when it is missing.

    Raises:
        Mm2OnnxError: the disk is full or the write failed; `target` is as it was before.
    """
    target = Path(target)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise Mm2OnnxError(f'{target}: could not be written ({error.strerror or error}); '
                           f'free some space or choose another folder') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(target: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or damaged one is a UsageError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f'{path}: is not valid JSON ({error})') from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def check_writable(target: str | os.PathLike[str]) -> None:
    """Refuse an output path that cannot be written, before hours are spent on making its content.

    Raises:
        UsageError: the folder is read-only, or a folder or device stands where the file should be.
    """
    target = Path(target)
    if target.is_dir():
        raise UsageError(f'{target}: is a folder; give the name of a file')
    if target.exists() and not target.is_file():
        raise UsageError(f'{target}: is a device or pipe, which would be replaced; give the name of a file')
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f'{target}: {folder} is a file, not a folder')
    probe = folder / f'.{target.name}.probe.{os.getpid()}.part'
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f'{target}: the folder {folder} cannot be written ({error.strerror}); '
                         f'choose another one or change its permissions') from error
