"""The goldens' seeded weights and inputs of Sparse4D, made again by the rule of FILL.md.

Source: ../shared/golden/sparse4d/FILL.md.
"""

from __future__ import annotations

import numpy as np
import torch

import upstream_goldens
from dev.seeded.by_name import name_rng
from upstream_goldens import fill_sha256

__all__ = ['arrays', 'features', 'fill_sha256', 'frame_arrays', 'metas', 'pictures']
IN_REPOSITORY = upstream_goldens.IN_REPOSITORY / 'sparse4d'
SIZES = (64, 176), (32, 88), (16, 44), (8, 22)
"""Height and width of the feature maps of a camera."""
FILL_SHA256 = '7181d3d5bd4c5cadd7fe30ef9171faed99b9ae4deebb73a81a3621d2096cd311'


def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file of the goldens; skip the test where they are not."""
    if (IN_REPOSITORY / name).is_file():
        return np.load(IN_REPOSITORY / name)
    return np.load(upstream_goldens.folder_of('sparse4d') / name)


def frame_arrays(name: str, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file whose names begin with a prefix, without it."""
    stored = arrays(name)
    return {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}


def features(case: int) -> torch.Tensor:
    """Return the rows of the features (1, S, 256) of a case of the head alone."""
    levels = []
    for number, (height, width) in enumerate(SIZES):
        coarse = name_rng(f'feat_{case}_level{number}').standard_normal((6, 256, 5, 12))
        fine = interpolation(height, 5) @ coarse @ interpolation(width, 12).T
        levels.append(fine.reshape(6, 256, -1).transpose(0, 2, 1))
    return torch.from_numpy(np.concatenate(levels, 1).astype(np.float32).reshape(1, -1, 256))


def pictures(frame: int) -> torch.Tensor:
    """Return the pictures (1, 6, 3, 256, 704) of a frame, normalised."""
    generator = name_rng(f'img_{frame}')
    fine = generator.standard_normal((1, 6, 3, 256, 704))
    coarse = generator.standard_normal((1, 6, 3, 8, 22))
    smooth = interpolation(256, 8) @ coarse @ interpolation(704, 22).T
    return torch.from_numpy((0.1 * fine + 1.5 * smooth).astype(np.float32))


def interpolation(length: int, points: int) -> np.ndarray:
    """Return the matrix (length, points) of the linear interpolation of so many points."""
    centres = np.clip((np.arange(length) + 0.5) * points / length - 0.5, 0, points - 1)
    low = np.minimum(np.floor(centres), points - 2).astype(int)
    matrix = np.zeros((length, points))
    matrix[np.arange(length), low] = 1 - (centres - low)
    matrix[np.arange(length), low + 1] = centres - low
    return matrix


def metas(frame: int) -> dict[str, object]:
    """Return the data of a frame besides its pictures, as the head takes them."""
    stored = frame_arrays('inputs.npz', f'f{frame}_')
    pose = {name: stored[name] for name in ('T_global', 'T_global_inv')}
    return dict(
        timestamp=torch.from_numpy(stored['timestamp'].reshape(1)),
        projection_mat=torch.from_numpy(stored['projection_mat'])[None],
        image_wh=torch.from_numpy(stored['image_wh'])[None],
        img_metas=[pose],
    )


def count_frames() -> int:
    """Return the number of frames."""
    return sum(key.endswith('_token') for key in arrays('inputs.npz').files)
