"""Voxels of .npz files under various names. N voxels of C values. Needs numpy only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError

FEATURES = re.compile(r'features(_f16|_f32)?')
COORDINATES = re.compile(r'(?:coordinates|coors|coords)(?:_b(xyz|zyx))?(?:_i16|_i32)?')
"""Names of coordinates, perhaps with their order."""
EXPECTED = (
    'expected an .npz with `features` (N, C) floats and `coordinates` (N, 4) integers: sample and three '
    'axes (also named coors or coords; coors_bxyz and coors_bzyx state the order)'
)


def read_voxels(path: str | Path, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C) float32 and coordinates (N, 4) int32, sample and axes, of one sweep, unchecked.

    Names: `features` (`_f16`, `_f32`); `coordinates`, `coors` or `coords` in the model's order, or in the
    order of `_bxyz` or `_bzyx` (`coords_bxyz_i16`).
    """
    try:
        arrays = load_arrays(path)
    except DataError as error:
        raise DataError(f'{error}; {EXPECTED}') from error
    features = arrays[_single_name(path, arrays, FEATURES, 'features')]
    name = _single_name(path, arrays, COORDINATES, 'coordinates')
    coordinates = arrays[name]
    fits = features.ndim == coordinates.ndim == 2 and len(features) == len(coordinates)
    kinds = features.dtype.kind in 'fiu' and coordinates.dtype.kind in 'iu'
    if not fits or not kinds or coordinates.shape[1] != 4:
        raise DataError(
            f'{path}: features {features.dtype} {features.shape} and coordinates {coordinates.dtype} '
            f'{coordinates.shape}; {EXPECTED}'
        )
    if coordinates.size and not 0 <= coordinates.min() <= coordinates.max() <= np.iinfo(np.int32).max:
        ends = f'{coordinates.min()} to {coordinates.max()}'
        raise DataError(f'{path}: {name} are {ends}, expected 0 to 2**31 - 1')
    if COORDINATES.fullmatch(name)[1] not in (None, order):
        coordinates = coordinates[:, [0, 3, 2, 1]]
    return features.astype(np.float32), np.ascontiguousarray(coordinates, np.int32)


def _single_name(
    path: str | Path, arrays: dict[str, np.ndarray], pattern: re.Pattern[str], title: str
) -> str:
    names = [name for name in arrays if pattern.fullmatch(name)]
    if len(names) != 1:
        got = f'{title} under {" and ".join(names)}' if names else f'no {title}'
        raise DataError(f'{path}: has {got}; {EXPECTED}')
    return names[0]
