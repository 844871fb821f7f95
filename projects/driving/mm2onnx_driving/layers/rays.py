"""Points along the rays of image tokens, and codes of positions, for PETR and StreamPETR.

Sources: megvii-research/PETR f7525f9, `dense_heads/petr_head.py` (`position_embeding`, `pos2posemb3d`);
exiawsh/StreamPETR 95f6470, `models/utils/positional_encoding.py`.
Glossary: B batch, N cameras, T tokens, D depths.
"""

import math

import numpy as np
import torch
from torch import Tensor

MIN_DEPTH = 1e-5
"""Smallest depth factor of pixels, m."""


def depth_bins(num: int, start: float, end: float, linear_increasing: bool) -> Tensor:
    """Return `num` depths (num,) from `start` on, m; the next would be `end`.

    Steps are equal, or with `linear_increasing` grow linearly (LID).
    """
    index = torch.arange(num).float()
    if linear_increasing:
        return start + (end - start) / (num * (1 + num)) * index * (index + 1)
    return start + (end - start) / num * index


def frustum_points(pixels: Tensor, depths: Tensor) -> Tensor:
    """Return the homogeneous points (T, D, 4) u d, v d, d, 1 of `pixels` (T, 2) at `depths` (D,) m.

    A token's place in the padded image is its cell's centre for StreamPETR, the upper left corner for PETR.
    """
    num_tokens, num_bins = pixels.shape[0], depths.shape[0]
    depth = depths.view(1, -1, 1).expand(num_tokens, num_bins, 1)
    scaled = pixels.unsqueeze(1) * depth.clamp(min=MIN_DEPTH)
    return torch.cat([scaled, depth, torch.ones_like(depth)], dim=-1)


def lidar_points(img2lidar: Tensor, frustum: Tensor) -> Tensor:
    """Return the points (B, T, D, 3) in m, LiDAR frame, of a frustum (T, D, 4).

    Matrices, from pixels times depth to metres, are (B, N, 4, 4), (B, T, 4, 4) or (B, T, D, 4, 4).
    """
    num_tokens, num_bins, _ = frustum.shape
    matrices = img2lidar.flatten(1, -3).transpose(-1, -2)
    per_matrix = num_tokens * num_bins // matrices.shape[1]
    points = frustum.reshape(1, -1, per_matrix, 4) @ matrices
    return points.reshape(-1, num_tokens, num_bins, 4)[..., :3]


def sine_encoding(values: Tensor, num_feats: int) -> Tensor:
    """Encode numbers (..., 1), scaled by 2 pi, as (..., num_feats): sin, cos, sin, cos, ..."""
    periods = 10000.0 ** (2 * np.arange(num_feats // 2) / num_feats)
    angles = values * (2 * math.pi) / torch.tensor(periods.tolist(), device=values.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def point_encoding(points: Tensor, num_feats: int) -> Tensor:
    """Encode points (..., 3) in shares of a range as (..., 3 * num_feats), in the order y, x, z."""
    return torch.cat([sine_encoding(points[..., axis : axis + 1], num_feats) for axis in (1, 0, 2)], dim=-1)
