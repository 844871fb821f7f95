"""Sine encodings of points, times and ego motion.

Source: exiawsh/StreamPETR 95f6470, models/utils/positional_encoding.py (`pos2posemb1d`, `pos2posemb3d`,
`nerf_positional_encoding`).
"""

import math

import numpy as np
import torch
from torch import Tensor

from mmdeploy_ext.exporting.same_bytes import power

NERF_FREQUENCIES = (1, 2, 4, 8, 16, 32)


def sine_encoding(values: Tensor, num_feats: int) -> Tensor:
    """Encode numbers (..., 1), which are scaled by 2 pi, as (..., num_feats): sin, cos, sin, cos, ...

    Pair j has the frequency 10000 ** (-2 j / num_feats).
    """
    periods = power(10000.0, 2 * np.arange(num_feats // 2) / num_feats)
    angles = values * (2 * math.pi) / torch.tensor(periods.tolist(), device=values.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def point_encoding(points: Tensor, num_feats: int) -> Tensor:
    """Encode (..., 3) normalised points as (..., 3 * num_feats), in the order y, x, z."""
    return torch.cat([sine_encoding(points[..., axis : axis + 1], num_feats) for axis in (1, 0, 2)], dim=-1)


def nerf_encoding(values: Tensor) -> Tensor:
    """Encode (..., n) as (..., 12 n): for each of six frequencies the n sines, then the n cosines."""
    waves = [wave(values * frequency) for frequency in NERF_FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=-1)


def motion_code(velo: Tensor, age: Tensor, egopose: Tensor) -> Tensor:
    """Encode the motion between a row's frame of origin and the current one as (B, n, 180).

    That is of 15 numbers: velocity (B, n, 2) m/s, age (B, n, 1) s, and the first three rows of the pose (B,
    n, 4, 4) from the row's LiDAR frame to the current one.
    """
    return nerf_encoding(torch.cat([velo, age, egopose[..., :3, :].flatten(-2)], dim=-1))
