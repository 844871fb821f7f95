"""Intrinsic matrices of cameras of single pictures: their form, and their file. Needs numpy alone.

A camera is a matrix from the frame of the camera, in metres, to pixels times depth: (3, 3), or with a
translation (3, 4) or (4, 4). That of a graph with the input `lidar2img` is from the frame of the LiDAR.
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
"""Name of the input of a graph that takes the cameras of pictures, for pixels of the network input."""
PROJECTION = 'lidar2img'
"""Name of the input of a graph that takes cameras from the frame of a LiDAR, for pixels of the picture before
it is resized."""


def camera_key(names: Container[str]) -> str:
    """Return the name of the cameras among names of inputs, or of entries of a meta; '' if there are none."""
    return next((name for name in (CAMERA, PROJECTION) if name in names), '')


def square_matrix(matrix: Any) -> np.ndarray:
    """Return a matrix (3, 3), (3, 4) or (4, 4) as (4, 4) float64, the rest that of the identity.

    ValueError: another shape, not finite, or a text that is no number. TypeError: a dict.
    """
    array = np.asarray(matrix, np.float64)
    if array.shape not in ((3, 3), (3, 4), (4, 4)) or not np.isfinite(array).all():
        raise ValueError(f'got {array.tolist()}, expected 3x3, 3x4 or 4x4 finite numbers')
    square = np.eye(4)
    square[: array.shape[0], : array.shape[1]] = array
    return square


def check_camera(camera: np.ndarray) -> None:
    """Refuse (ShapeError) a camera (4, 4) that graphs of monocular detectors would read wrongly.

    Its last row has to be 0 0 0 1, its focal lengths positive, and all finite.
    """
    is_positive = camera[0, 0] > 0 and camera[1, 1] > 0
    if not (np.isfinite(camera).all() and is_positive and np.array_equal(camera[3], (0, 0, 0, 1))):
        raise ShapeError(
            f'cam2img: got {camera.tolist()}; expected positive focal lengths, a last row of 0 0 0 1 and '
            f'finite numbers'
        )


def check_projection(camera: np.ndarray) -> None:
    """Refuse (ShapeError) a camera (4, 4) from the frame of a LiDAR that is not finite.

    Its last row has to be 0 0 0 1.
    """
    if not (np.isfinite(camera).all() and np.array_equal(camera[3], (0, 0, 0, 1))):
        raise ShapeError(
            f'{PROJECTION}: got {camera.tolist()}; expected a last row of 0 0 0 1 and finite numbers'
        )


def original(camera: np.ndarray, to_input: np.ndarray) -> np.ndarray:
    """Return the camera (4, 4) float64 for pixels of the picture before it is resized.

    `camera` is for pixels of the network input, `to_input` (3, 3) from pixels of the picture to those.
    """
    return np.linalg.inv(square_matrix(to_input)) @ camera


def unmoved(cam2img: np.ndarray, to_input: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
    """Return a camera (4, 4) float64 of a network input without what moved the picture, padding or a warp.

    The picture of the result is the original times `scale_factor`, so that dividing by it gives the camera of
    the original.

    Args:
        cam2img: (4, 4) of the network input.
        to_input: (3, 3) matrix from pixels of the original picture to those of the input.
        scale_factor: (4,) `w h w h`, input / original.
    """
    scale = np.diag([float(scale_factor[0]), float(scale_factor[1]), 1.0])
    return square_matrix(scale @ np.linalg.inv(to_input)) @ cam2img.astype(np.float64)


def cameras_of(content: Any) -> dict[str, np.ndarray]:
    """Return file name -> camera (4, 4) of the content of a JSON file; '' is that of all other pictures.

    The content is a matrix, or a dict of file name -> matrix, or the annotations of mmdet3d's monocular data
    sets, whose `images` have `file_name` and `cam_intrinsic`. Names are returned as `Path` spells them,
    without './'. ValueError: none of these, a matrix that `square_matrix` refuses, or a file name twice with
    different cameras. KeyError, TypeError: an image of the annotations lacks one of the two, or is no dict;
    or a dict is in place of a matrix.
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
    """Return `cameras_of` a JSON file; DataError names the file and what is wrong."""
    try:
        return cameras_of(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: holds no cameras: {error}') from error


def camera_for(cameras: Mapping[str, np.ndarray], picture: str | Path) -> np.ndarray:
    """Return the camera of a picture.

    It is that of the longest name with which its path ends, part by part; else of the names that have the
    file name of the picture; else that of all pictures.

    DataError: there is none, or several names with different cameras have its file name.
    """
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
