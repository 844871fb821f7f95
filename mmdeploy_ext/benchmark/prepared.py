"""A network input that was kept as a file, to measure on instead of pictures."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.inputs.pictures import PreparedImage

KEYS = ('input', 'img_shape', 'ori_shape')


def read_prepared(path: str | Path) -> PreparedImage:
    """Read an .npz of `input` (3, H, W) or (1, 3, H, W), `img_shape` (2,) and `ori_shape` (2,).

    `input` is normalised and padded; `img_shape` is its content before padding, `ori_shape` the original
    image's size, all in pixels.

    Raises:
        UsageError: missing, damaged, without one of the arrays, or arrays of other shapes.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in KEYS if key in stored.files}
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file') from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(f'{path}: is no .npz of arrays ({error}); it needs {", ".join(KEYS)}') from error
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise UsageError(f'{path}: has no {", ".join(missing)}; expected {", ".join(KEYS)}')
    tensor = arrays['input'][0] if arrays['input'].shape[:1] == (1,) else arrays['input']
    sizes = [arrays[key].reshape(-1).tolist() for key in KEYS[1:]]
    _check(path, tensor, sizes)
    (height, width), (ori_height, ori_width) = ((int(a), int(b)) for a, b in sizes)
    ratio = np.array([width / ori_width, height / ori_height] * 2, np.float32)
    return PreparedImage(np.ascontiguousarray(tensor), (height, width), ratio, (ori_height, ori_width))


def _check(path: str | Path, tensor: np.ndarray, sizes: list[list[float]]) -> None:
    if tensor.dtype != np.float32 or tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.size == 0:
        raise UsageError(
            f'{path}: input is {tensor.dtype} {tensor.shape}, expected float32 (3, H, W), '
            f'normalised and padded'
        )
    if not np.isfinite(tensor).all():
        raise UsageError(f'{path}: input has values that are not finite; no network result means anything')
    for key, size in zip(KEYS[1:], sizes, strict=True):
        if len(size) != 2 or min(size) < 1:
            raise UsageError(f'{path}: {key} is {size}, expected height and width in pixels')
    if sizes[0][0] > tensor.shape[1] or sizes[0][1] > tensor.shape[2]:
        raise UsageError(
            f'{path}: img_shape {sizes[0]} is larger than the input of {list(tensor.shape[1:])}; it is the '
            f'part of the input before padding'
        )
