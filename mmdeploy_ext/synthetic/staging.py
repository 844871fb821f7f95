"""Sets of generated files: a folder that appears whole, with a manifest of its parameters; their options."""

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
from mmdeploy_ext.core.files import check_writable, read_json, sha256_file, write_json

MANIFEST = 'READY.json'
"""File that is written last into a finished folder: `parameters`, and `sha256`, file name -> its hash."""
EXISTS = 'already there with the same parameters, nothing to do'
"""Text that is printed if the set is there already."""


def staging_folder(root: Path) -> Path:
    """Return the folder beside `root`, or beside the folder that a link there names, in which it is made."""
    root = root.resolve()
    return root.with_name(f'.{root.name}.part')


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one process at a time make `root`; the lock file beside it stays."""
    check_replaceable(root)
    root = root.resolve()  # '.' has no name
    lock = root.with_name(f'.{root.name}.lock')
    check_writable(lock)
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, 'w') as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def check_replaceable(root: Path) -> None:
    """Raise DataError if there is a file or a folder at `root` that this package has not made."""
    if root.exists() and not (root.is_dir() and (not any(root.iterdir()) or (root / MANIFEST).is_file())):
        raise DataError(
            f'{root}: exists, but is not a generated set ({MANIFEST} is missing); '
            f'choose another folder, or remove it yourself'
        )


def is_ready(root: Path, parameters: dict[str, Any]) -> bool:
    """Return whether `root` is a finished set with these parameters, name -> value as JSON gives it back."""
    check_replaceable(root)
    if not (root / MANIFEST).is_file():
        return False
    manifest = read_json(root / MANIFEST)
    existing = manifest['parameters']
    keys = sorted(key for key in {*existing, *parameters} if existing.get(key) != parameters.get(key))
    if keys:
        got, expected = ({key: values.get(key) for key in keys} for values in (existing, parameters))
        raise DataError(
            f'{root}: was made with {got}, expected {expected}; choose another folder, '
            f'or replace it with --force'
        )
    missing = [name for name in manifest['sha256'] if not (root / name).is_file()]
    if missing:
        raise DataError(
            f'{root}: {len(missing)} files of the set are missing, first {missing[0]}; '
            f'make it again with --force'
        )
    return True


def publish(root: Path, parameters: dict[str, Any]) -> None:
    """Write the manifest of the staging folder, and move the folder to `root`; a link at `root` stays."""
    staging, root = staging_folder(root), root.resolve()
    files = sorted(path for path in staging.rglob('*') if path.is_file() and path.name != MANIFEST)
    hashes = {path.relative_to(staging).as_posix(): sha256_file(path) for path in files}
    write_json(staging / MANIFEST, {'parameters': parameters, 'sha256': hashes})
    outdated = root.with_name(f'.{root.name}.old')
    shutil.rmtree(outdated, ignore_errors=True)
    if root.exists():
        root.rename(outdated)
    staging.rename(root)
    shutil.rmtree(outdated, ignore_errors=True)


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
        if force:
            check_replaceable(root)
        elif is_ready(root, parameters):
            return False
        folder = staging_folder(root)
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        folder.mkdir(parents=True)
        with Progress(console=cli.stderr(), disable=quiet) as progress:
            task = progress.add_task(f'making {root}', total=total)
            for steps in write(folder):
                progress.advance(task, steps)
        publish(root, parameters)
    return True


def add_seeded(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mm2onnx synthetic weights`, without the import of torch of `seeded.py`."""
    parser.add_argument('config')
    cli.writes(parser.add_argument('out', type=Path))
    parser.add_argument('--seed', type=int, default=0)


def add_folder(parser: argparse.ArgumentParser, option: str, default: str) -> None:
    """Add an option that names the folder of a set."""
    text = 'folder of the set (default: %(default)s)'
    cli.writes(parser.add_argument(option, default=default, help=text), '')


def add_pictures(parser: argparse.ArgumentParser, default: str, train_images: int, val_images: int) -> None:
    """Add the options of a set of training and validation pictures."""
    add_folder(parser, '--out', default)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train-images', type=int, default=train_images, metavar='N')
    parser.add_argument('--val-images', type=int, default=val_images, metavar='M')
    parser.add_argument('--force', action='store_true', help='replace a generated set at --out')


def make_pictures(args: argparse.Namespace, ensure: Callable[..., bool], **settings: Any) -> None:
    """Make a set of pictures by `ensure` as the options of `add_pictures` state, and print the result."""
    counts = dict(train_images=args.train_images, val_images=args.val_images)
    was_made = ensure(args.out, seed=args.seed, force=args.force, **counts, **settings)
    pictures = f'{args.train_images} training and {args.val_images} validation pictures made'
    print(f'{args.out}: {pictures if was_made else EXISTS}')


def write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write a picture (H, W, 3) uint8 BGR with a quality of 0..100."""
    done, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f'{path}: OpenCV could not encode the picture of shape {image.shape}')
    path.write_bytes(encoded.tobytes())
