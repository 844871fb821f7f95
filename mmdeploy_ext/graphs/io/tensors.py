"""Named tensors on disk, for graphs: files that other tools write as well. Needs numpy only."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.dump import MANIFEST, load_dump
from mmdeploy_ext.base.errors import DataError


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named tensors: an .npz file, a dump of this project, a .npy file, or a folder of .npy files."""
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return load_dump(path)[0]
        arrays = {}
        for file in sorted(path.glob('*.npy')):
            arrays |= load_arrays(file, unquote(file.stem))
        if not arrays:
            raise DataError(f'{path}: has no tensors; expected .npy files or a {MANIFEST}')
        return arrays
    if not path.is_file():
        raise DataError(f'{path}: no such file or folder of tensors; expected .npz, or a folder of .npy')
    return load_arrays(path, unquote(path.stem))


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            array = array.astype(str) if array.dtype == object else array
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
