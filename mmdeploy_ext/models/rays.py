"""Points along the rays of image tokens, and codes of positions, for PETR and StreamPETR.

Sources: megvii-research/PETR f7525f9, `dense_heads/petr_head.py` (`position_embeding`, `pos2posemb3d`);
exiawsh/StreamPETR 95f6470, `models/utils/positional_encoding.py`.
"""

import math

import numpy as np
import torch
from torch import Tensor

MIN_DEPTH = 1e-5
"""Smallest depth in m by which pixels are multiplied."""


def depth_bins(num: int, start: float, end: float, linear_increasing: bool) -> Tensor:
    """Return `num` depths (num,) in m from `start` on; the next one would be `end`.

    Steps are equal, or with `linear_increasing` grow linearly with the depth's index (LID).
    """
    index = torch.arange(num).float()
    if linear_increasing:
        return start + (end - start) / (num * (1 + num)) * index * (index + 1)
    return start + (end - start) / num * index


def frustum_points(pixels: Tensor, depths: Tensor) -> Tensor:
    """Return the homogeneous points (T, D, 4) as u d, v d, d, 1 of `pixels` (T, 2) at `depths` (D,) in m.

    `pixels` are u, v of the place in the padded image that stands for a token: the centre of its cell for
    StreamPETR, the upper left corner for PETR.
    """
    num_tokens, num_bins = pixels.shape[0], depths.shape[0]
    depth = depths.view(1, -1, 1).expand(num_tokens, num_bins, 1)
    scaled = pixels.unsqueeze(1) * depth.clamp(min=MIN_DEPTH)
    return torch.cat([scaled, depth, torch.ones_like(depth)], dim=-1)


def lidar_points(img2lidar: Tensor, frustum: Tensor) -> Tensor:
    """Return the points (B, T, D, 3) in m, LiDAR frame, of a frustum (T, D, 4).

    The matrices are (B, G, 4, 4), one per camera (G = N) or per token (G = T), or (B, T, D, 4, 4), one per
    point. They go from pixels times depth to metres of the LiDAR frame.
    """
    num_tokens, num_bins, _ = frustum.shape
    matrices = img2lidar.flatten(1, -3).transpose(-1, -2)
    per_matrix = num_tokens * num_bins // matrices.shape[1]
    points = frustum.reshape(1, -1, per_matrix, 4) @ matrices
    return points.reshape(-1, num_tokens, num_bins, 4)[..., :3]


def sine_encoding(values: Tensor, num_feats: int) -> Tensor:
    """Encode numbers (..., 1), which are scaled by 2 pi, as (..., num_feats): sin, cos, sin, cos, ...

    Numbers are shares of a range, 0..1 inside of it, or ages in seconds.
    """
    periods = 10000.0 ** (2 * np.arange(num_feats // 2) / num_feats)
    angles = values * (2 * math.pi) / torch.tensor(periods.tolist(), device=values.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def point_encoding(points: Tensor, num_feats: int) -> Tensor:
    """Encode points (..., 3) in shares of a range as (..., 3 * num_feats), in the order y, x, z."""
    return torch.cat([sine_encoding(points[..., axis : axis + 1], num_feats) for axis in (1, 0, 2)], dim=-1)
