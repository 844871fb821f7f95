"""Intrinsic matrices of single cameras, and their file.

A matrix takes metres in the camera frame (`lidar2img`: LiDAR frame) to pixels times depth: (3, 3), or with a
translation (3, 4) or (4, 4).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, ShapeError
from mmdeploy_ext.core.files import read_json

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

CAMERA = 'cam2img'
"""Graph input of cameras, for pixels of the network input."""
PROJECTION = 'lidar2img'
"""Graph input of cameras from the LiDAR frame, for pixels before the resize."""


def camera_key(names: Container[str]) -> str:
    return next((name for name in (CAMERA, PROJECTION) if name in names), '')


def square_matrix(matrix: Any) -> np.ndarray:
    """Extend a matrix (3, 3), (3, 4) or (4, 4) to (4, 4) float64; ValueError: malformed."""
    array = np.asarray(matrix, np.float64)
    if array.shape not in ((3, 3), (3, 4), (4, 4)) or not np.isfinite(array).all():
        raise ValueError(f'got {array.tolist()}, expected 3x3, 3x4 or 4x4 finite numbers')
    square = np.eye(4)
    square[: array.shape[0], : array.shape[1]] = array
    return square


def check_camera(camera: np.ndarray) -> None:
    """Raise ShapeError unless a camera (4, 4) is finite, has positive focal lengths and last row 0 0 0 1."""
    is_positive = camera[0, 0] > 0 and camera[1, 1] > 0
    if not (np.isfinite(camera).all() and is_positive and np.array_equal(camera[3], (0, 0, 0, 1))):
        raise ShapeError(
            f'cam2img: got {camera.tolist()}; expected positive focal lengths, a last row of 0 0 0 1 and '
            f'finite numbers'
        )


def check_projection(camera: np.ndarray) -> None:
    """Raise ShapeError unless a projection (4, 4) from the LiDAR frame is finite with last row 0 0 0 1."""
    if not (np.isfinite(camera).all() and np.array_equal(camera[3], (0, 0, 0, 1))):
        raise ShapeError(
            f'{PROJECTION}: got {camera.tolist()}; expected a last row of 0 0 0 1 and finite numbers'
        )
    if np.array_equal(camera[2], (0, 0, 1, 0)):
        raise ShapeError(
            f'{PROJECTION}: got {camera.tolist()}, the intrinsics of a camera; expected them times lidar2cam'
        )


def original(camera: np.ndarray, to_input: np.ndarray) -> np.ndarray:
    """Camera (4, 4) float64 for pixels before the resize.

    `camera` is for the network input; `to_input` (3, 3) takes pixels of the picture to the input.
    """
    return np.linalg.inv(square_matrix(to_input)) @ camera


def unmoved(cam2img: np.ndarray, to_input: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
    """`original` times `scale_factor` ((4,) `w h w h`): the camera without padding or warp."""
    scale = np.diag([float(scale_factor[0]), float(scale_factor[1]), 1.0])
    return square_matrix(scale @ np.linalg.inv(to_input)) @ cam2img.astype(np.float64)


def cameras_of(content: Any) -> dict[str, np.ndarray]:
    """File name -> camera (4, 4) of a JSON file; '' stands for all other pictures.

    The content is a matrix, file name -> matrix, or annotations of mmdet3d's monocular data sets. ValueError,
    KeyError, TypeError: anything else.
    """
    if isinstance(content, list):
        pairs = [('', content)]
    elif isinstance(content, dict) and isinstance(content.get('images'), list):
        pairs = [(image['file_name'], image['cam_intrinsic']) for image in content['images']]
    elif isinstance(content, dict):
        pairs = content.items()
    else:
        raise ValueError('expected a matrix, or file names and their matrices')
    cameras: dict[str, np.ndarray] = {}
    for file_name, matrix in pairs:
        name, camera = file_name and Path(file_name).as_posix(), square_matrix(matrix)
        if not np.array_equal(cameras.setdefault(name, camera), camera):
            raise ValueError(f'{name} is there twice, with different cameras')
    return cameras


def read_cameras(path: str | Path) -> dict[str, np.ndarray]:
    """`cameras_of` a JSON file; DataError names the file."""
    try:
        return cameras_of(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: holds no cameras: {error}') from error


def camera_for(cameras: Mapping[str, np.ndarray], picture: str | Path) -> np.ndarray:
    """Camera of a picture, by the longest matching end of its path, then its file name, then ''."""
    path = Path(picture).as_posix()
    endings = [name for name in cameras if name and (path == name or path.endswith(f'/{name}'))]
    if endings:
        return cameras[max(endings, key=len)]
    namesakes = [name for name in cameras if name and Path(name).name == Path(path).name]
    if not namesakes and '' not in cameras:
        raise DataError(f'{picture}: has no camera in the file of cameras, which has {len(cameras)}')
    camera = cameras[namesakes[0] if namesakes else '']
    if not all(np.array_equal(cameras[name], camera) for name in namesakes):
        raise DataError(
            f'{picture}: the file of cameras has different ones for {", ".join(namesakes)}; name the picture '
            f'by one of these paths'
        )
    return camera
