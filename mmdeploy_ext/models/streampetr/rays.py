"""The camera ray of each image token: points along it, in the LiDAR frame.

Source: exiawsh/StreamPETR 95f6470, models/utils/misc.py (`locations`) and streampetr_head.py
(`position_embeding`).

Shapes: B batch, N cameras, h w feature map, T = N h w tokens (camera-major), D depth bins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdeploy_ext.core.errors import ShapeError

MIN_DEPTH = 1e-5


def depth_bins(num: int, start: float, end: float, linear_increasing: bool) -> Tensor:
    """Return `num` depths in m from `start` towards `end`, with equal or linearly growing steps (LID)."""
    index = torch.arange(num).float()
    if linear_increasing:
        return start + (end - start) / (num * (1 + num)) * index * (index + 1)
    return start + (end - start) / num * index


def token_centers(
    pad_shape: Sequence[int], stride: int, num_cameras: int, device: torch.device | str
) -> Tensor:
    """Return the centres (T, 2) of the feature cells, x and y in px of the padded image."""
    pad_h, pad_w = int(pad_shape[0]), int(pad_shape[1])
    if pad_h % stride or pad_w % stride:
        raise ShapeError(f'image size {pad_h}x{pad_w} is not a multiple of the stride {stride}; pad them')
    # there and back: upstream keeps the centres as fractions, and its float32 rounding with them
    ys, xs = (
        (torch.arange(0, size, stride, dtype=torch.float32, device=device) + stride // 2) / size * size
        for size in (pad_h, pad_w)
    )
    grid = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), dim=-1)
    return grid.reshape(-1, 2).repeat(num_cameras, 1)


def frustum_points(centers: Tensor, depths: Tensor) -> Tensor:
    """Return the homogeneous points (T, D, 4) as u d, v d, d, 1 of `centers` (T, 2) at `depths` (D,)."""
    num_tokens, num_bins = centers.shape[0], depths.shape[0]
    depth = depths.view(1, -1, 1).expand(num_tokens, num_bins, 1)
    scaled = centers.unsqueeze(1) * depth.clamp(min=MIN_DEPTH)
    return torch.cat([scaled, depth, torch.ones_like(depth)], dim=-1)


def lidar_points(img2lidar: Tensor, frustum: Tensor) -> Tensor:
    """Return the points (B, T, D, 3) in m, LiDAR frame, of a frustum (T, D, 4).

    The matrices are (B, G, 4, 4), one per camera (G = N) or per token (G = T), or (B, T, D, 4, 4), one per
    point.
    """
    num_tokens, num_bins, _ = frustum.shape
    matrices = img2lidar.flatten(1, -3).transpose(-1, -2)
    per_matrix = num_tokens * num_bins // matrices.shape[1]
    points = frustum.reshape(1, -1, per_matrix, 4) @ matrices
    return points.reshape(-1, num_tokens, num_bins, 4)[..., :3]


def focal_per_token(intrinsics: Tensor, tokens_per_camera: int) -> Tensor:
    """Return |fx|, |fy| in units of 1000 px per token, (B, T, 2), from `intrinsics` (B, N, 4, 4).

    Token t gets the camera t MOD N, although t DIV N h w is the camera that it comes from: the published
    weights were trained with this. The matrices of `lidar_points` belong to the right camera.
    """
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1).abs() / 1e3
    return focal.repeat(1, tokens_per_camera, 1)
