"""Named tensors on disk, for graphs: files that other tools write as well. Needs numpy only."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from mmdeploy_ext.util.dump import MANIFEST, load_dump
from mmdeploy_ext.util.errors import DataError

CANNOT_READ = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that numpy raises for damaged files: it reads the header of an array as Python text."""


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named tensors: an .npz file, a dump of this project, a .npy file, or a folder of .npy files."""
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return load_dump(path)[0]
        arrays = {unquote(file.stem): _read_file(file) for file in sorted(path.glob('*.npy'))}
        if not arrays:
            raise DataError(f'{path}: has no tensors; expected .npy files or a {MANIFEST}')
        return arrays
    if not path.is_file():
        raise DataError(f'{path}: no such file or folder of tensors; expected .npz, or a folder of .npy')
    content = _read_file(path)
    if isinstance(content, np.ndarray):
        return {unquote(path.stem): content}
    with content as archive:
        try:
            return {name: archive[name] for name in archive.files}
        except CANNOT_READ as error:
            raise DataError(f'{path}: cannot be read ({error})') from error


def _read_file(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    try:
        return np.load(path, allow_pickle=False)
    except CANNOT_READ as error:
        raise DataError(f'{path}: is not a readable numpy file ({error})') from error


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            array = array.astype(str) if array.dtype == object else array
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
