"""Sets of generated files: a folder that appears whole, with a manifest of its parameters."""

import argparse
import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import Progress

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.files import check_writable, read_json, write_json

MANIFEST = 'READY.json'
"""File that is written last into a finished folder, with its `parameters`."""
EXISTS = 'already there with the same parameters, nothing to do'


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one process at a time make `root`; the lock file beside it stays.

    DataError: there is a file or a folder at `root` that this package has not made.
    """
    if root.exists() and not (root.is_dir() and (not any(root.iterdir()) or (root / MANIFEST).is_file())):
        raise DataError(
            f'{root}: exists, but is not a generated set ({MANIFEST} is missing); '
            f'choose another folder, or remove it yourself'
        )
    root = root.resolve()  # '.' has no name
    lock = root.with_name(f'.{root.name}.lock')
    check_writable(lock)
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, 'w') as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def make_set(
    root: Path,
    parameters: dict[str, Any],
    write: Callable[[Path], Iterator[int]],
    total: int,
    *,
    force: bool,
    quiet: bool,
) -> bool:
    """Make a set unless it exists already; return whether it was made.

    Args:
        root: folder of the set, or a link to it; it appears whole.
        parameters: everything that decides on the content, name -> value as JSON gives it back.
        write: writes the files into a folder, and yields the number of steps that were just done.
        total: number of all steps.
        force: replace a set at `root`; other folders are never replaced.
        quiet: show no progress bar.
    """
    if root.resolve() == Path.cwd():
        raise DataError(f'{root}: is the working directory, which a finished set would replace; name another')
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
        folder = target.with_name(f'.{target.name}.part')
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        folder.mkdir(parents=True)
        with Progress(console=cli.stderr(), disable=quiet) as progress:
            task = progress.add_task(f'making {root}', total=total)
            for steps in write(folder):
                progress.advance(task, steps)
        write_json(folder / MANIFEST, {'parameters': parameters})
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return True


def add_folder(parser: argparse.ArgumentParser, option: str, default: str) -> None:
    """Add an option that names the folder of a set."""
    text = 'folder of the set (default: %(default)s)'
    cli.writes(parser.add_argument(option, default=default, help=text), '')


def write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write a picture (H, W, 3) uint8 BGR with a quality of 0..100."""
    done, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f'{path}: OpenCV could not encode the picture of shape {image.shape}')
    path.write_bytes(encoded.tobytes())
