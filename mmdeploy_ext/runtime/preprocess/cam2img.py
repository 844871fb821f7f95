"""Intrinsic matrices of single cameras, and their file.

A matrix takes metres in the camera frame (`lidar2img`: LiDAR frame) to pixels times depth: (3, 3), or with a
translation (3, 4) or (4, 4).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.base.files import read_json

CAMERA = 'cam2img'
"""Graph input of cameras, for pixels of the network input."""
PROJECTION = 'lidar2img'
"""Graph input of cameras from the LiDAR frame, for pixels before the resize."""
SHORTEST_FOCAL = 0.1
"""Least focal length over the longer side of the picture: a view of 157 degrees."""
FARTHEST_CENTRE = 0.5
"""Largest distance of the principal point from the picture, over the picture's side."""
ROW_ATOL = 1e-3
"""Tolerance of the third row, and of its length."""


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


def intrinsics_problem(camera: np.ndarray, size: Sequence[int] | None = None) -> str:
    """Name the wrong entry of intrinsics (3, 3) or (4, 4), or return ''.

    `size` (h, w) is the picture's, in whose pixels the intrinsics are.
    """
    for column, expected in enumerate((0, 0, 1)):
        if not abs(camera[2, column] - expected) <= ROW_ATOL:
            wrong = f'[2][{column}] is {camera[2, column]:g}, expected {expected}: the third row is 0 0 1'
            is_transposed = np.allclose(camera[:3, 2], (0, 0, 1), atol=ROW_ATOL)
            return f'{wrong}; this matrix is transposed' if is_transposed else wrong
    return _lens_problem((camera[0, 0], camera[1, 1]), camera[:2, 2], size)


def projection_problem(camera: np.ndarray, size: Sequence[int] | None = None) -> str:
    """Name the wrong row of intrinsics times a rotation, (3, 3) or (4, 4), or return ''.

    `size`: see `intrinsics_problem`.
    """
    rows = camera[:3, :3].astype(np.float64)
    length = float(np.linalg.norm(rows[2]))
    if not abs(length - 1) <= ROW_ATOL:
        return f'[2], the third row, has the length {length:g}, expected 1: a row of the rotation'
    if np.linalg.det(rows) <= 0:
        return 'is a reflection or negated: its determinant is below 0'
    centre = rows[:2] @ rows[2]
    focal_lengths = np.linalg.norm(rows[:2] - centre[:, None] * rows[2], axis=1)
    return _lens_problem(focal_lengths, centre, size)


def _lens_problem(focal_lengths: Sequence[float], centre: Sequence[float], size: Sequence[int] | None) -> str:
    least = 0.0 if size is None else SHORTEST_FOCAL * max(size)
    for axis, focal in enumerate(focal_lengths):
        if not focal > least:
            unit = f'more than {least:g} pixels for {size[1]}x{size[0]}' if size else 'a positive number'
            return f'[{axis}][{axis}] gives the focal length {focal:g}, expected {unit}'
    for axis, side in enumerate(() if size is None else (size[1], size[0])):
        if not -FARTHEST_CENTRE * side <= centre[axis] <= (1 + FARTHEST_CENTRE) * side:
            return (
                f'[{axis}][2] gives the principal point {"xy"[axis]} = {centre[axis]:g}, expected it near '
                f'0 to {side}, the image; check that the matrix is for this size'
            )
    return ''


def check_camera(camera: np.ndarray, size: Sequence[int] | None = None) -> None:
    """Raise ShapeError for a camera (4, 4) that is no `cam2img` of a picture of `size` (h, w)."""
    _check_finite(CAMERA, camera)
    if problem := intrinsics_problem(camera, size):
        raise ShapeError(f'{CAMERA}{problem}')


def check_projection(camera: np.ndarray, size: Sequence[int] | None = None) -> None:
    """Raise ShapeError for a camera (4, 4) that is no `lidar2img` of a picture of `size` (h, w)."""
    _check_finite(PROJECTION, camera)
    if np.array_equal(camera[2], (0, 0, 1, 0)):
        raise ShapeError(
            f'{PROJECTION}: got {camera.tolist()}, which is an intrinsic matrix; expected the '
            'intrinsics times lidar2cam'
        )
    if problem := projection_problem(camera, size):
        raise ShapeError(f'{PROJECTION}{problem if problem[0] == "[" else f" {problem}"}')


def _check_finite(name: str, camera: np.ndarray) -> None:
    if not (np.isfinite(camera).all() and np.array_equal(camera[3], (0, 0, 0, 1))):
        raise ShapeError(f'{name}: got {camera.tolist()}; expected a last row of 0 0 0 1 and finite numbers')


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
            raise ValueError(f'{name} appears twice, with different matrices')
    return cameras


def read_cameras(path: str | Path) -> dict[str, np.ndarray]:
    """`cameras_of` a JSON file; DataError names the file."""
    try:
        return cameras_of(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: is not a file of cameras: {error}') from error


def camera_for(cameras: Mapping[str, np.ndarray], picture: str | Path) -> np.ndarray:
    """Camera of a picture, by the longest matching end of its path, then its file name, then ''."""
    path = Path(picture).as_posix()
    endings = [name for name in cameras if name and (path == name or path.endswith(f'/{name}'))]
    if endings:
        return cameras[max(endings, key=len)]
    namesakes = [name for name in cameras if name and Path(name).name == Path(path).name]
    if not namesakes and '' not in cameras:
        raise DataError(f'{picture}: is not in the file of cameras, which lists {len(cameras)}')
    camera = cameras[namesakes[0] if namesakes else '']
    if not all(np.array_equal(cameras[name], camera) for name in namesakes):
        raise DataError(
            f'{picture}: the file of cameras has different matrices for {", ".join(namesakes)}; name the '
            'image by one of these paths'
        )
    return camera
