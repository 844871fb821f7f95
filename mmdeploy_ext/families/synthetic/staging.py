"""Sets of generated files: a folder that appears whole, with a manifest."""

import argparse
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import Progress

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.files import check_writable, read_json, write_json

MANIFEST = 'READY.json'
"""The last file of a finished folder, with its `parameters`."""
EXISTS = 'already there with the same parameters, nothing to do'


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one process at a time make `root`; the lock file beside it stays.

    DataError: this package has not made `root`.
    """
    if root.exists() and not (root.is_dir() and (not any(root.iterdir()) or (root / MANIFEST).is_file())):
        raise DataError(
            f'{root}: exists, but is not a generated set ({MANIFEST} is missing); '
            f'choose another folder, or remove it yourself'
        )
    root = root.resolve()  # '.' has no name
    lock = root.with_name(f'.{root.name}.lock')
    check_writable(lock)
    if lock.is_symlink():
        raise DataError(f'{lock}: is a link, expected the lock of the set; remove it')
    root.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_set(
    root: Path,
    parameters: dict[str, Any],
    write: Callable[[Path], Iterator[int]],
    total: int,
    *,
    force: bool,
    quiet: bool,
) -> bool:
    """Make a set unless it exists; return whether it was made.

    - `root`: folder or link; it appears whole.
    - `parameters`: everything that decides on the content, as JSON.
    - `write`: writes into a folder, and yields numbers of finished steps of `total`.
    - `force`: replace a set at `root`, never other folders.
    """
    if root.resolve() == Path.cwd():
        raise DataError(
            f'{root}: is the working directory, which the data set would replace; choose another folder'
        )
    with locked(root):
        if (root / MANIFEST).is_file() and not force:
            existing = read_json(root / MANIFEST)['parameters']
            if existing == parameters:
                return False
            raise DataError(
                f'{root}: was made with {existing}, expected {parameters}; choose another folder, '
                f'or replace it with --force'
            )
        target = root.resolve()
        with tempfile.TemporaryDirectory('.part', f'.{target.name}.', target.parent) as beside:
            folder = Path(beside, 'new')
            folder.mkdir()
            with Progress(console=cli.stderr(), disable=quiet) as progress:
                task = progress.add_task(f'making {root}', total=total)
                for steps in write(folder):
                    progress.advance(task, steps)
            write_json(folder / MANIFEST, {'parameters': parameters})
            if target.exists():  # a folder that is removed in part could still have its manifest
                target.rename(Path(beside, 'former'))
            folder.rename(target)
    return True


def add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    text = 'folder of the set (default: %(default)s)'
    cli.add(parser, '--out DIR', text, default, hidden=['--root'], writes='')


def write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write (H, W, 3) uint8 BGR; quality 0..100."""
    done, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f'{path}: OpenCV could not encode an image of shape {image.shape}')
    path.write_bytes(encoded.tobytes())
