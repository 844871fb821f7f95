"""The operator of InternImage, DCNv3, in PyTorch: its compiled extension is built for GPUs alone.

Source of the algorithm: https://arxiv.org/abs/2211.05778; InternImage 31c962d, `detection/ops_dcnv3`.

Glossary: B batch, H, W size of the map, h, w of the result, G groups, D channels of a group, P points of a
kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def dcnv3_forward(
    features: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    *_: Any,
) -> Tensor:
    """Return (B, h, w, G * D): sums of bilinear samples around each place, weighted by the mask.

    The extension's argument behind these, `im2col_step`, changes nothing of the result.

    Args:
        features: (B, H, W, G * D); beyond the map there are zeros.
        offset: (B, h, w, G * P * 2) x before y, cells; points go down the columns of the kernel.
        mask: (B, h, w, G * P).
        kernel_h: rows of the kernel.
        kernel_w: its columns.
        stride_h: cells between rows of the result.
        stride_w: cells between its columns.
        pad_h: rows around the map.
        pad_w: columns around it.
        dilation_h: cells between rows of the kernel.
        dilation_w: cells between its columns.
        group: G.
        group_channels: D.
        offset_scale: of the kernel and of the offsets.
    """
    batch, height, width, _ = features.shape
    rows, columns = offset.shape[1:3]
    points = kernel_h * kernel_w
    half_x, half_y = (dilation_w * (kernel_w - 1)) // 2, (dilation_h * (kernel_h - 1)) // 2
    x = torch.arange(columns, device=offset.device).to(offset) * stride_w + (half_x - pad_w)
    y = torch.arange(rows, device=offset.device).to(offset) * stride_h + (half_y - pad_h)
    kernel = torch.tensor(
        [
            [column * dilation_w - half_x, row * dilation_h - half_y]
            for column in range(kernel_w)
            for row in range(kernel_h)
        ],
        dtype=offset.dtype,
        device=offset.device,
    )
    moved = (offset.reshape(batch, rows, columns, group, points, 2) + kernel) * offset_scale
    across = moved[..., 0] + x[:, None, None]
    down = moved[..., 1] + y[:, None, None, None]
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * group, rows * columns, points, 2)
    maps = features.reshape(batch, height, width, group, group_channels).permute(0, 3, 4, 1, 2)
    samples = functional.grid_sample(
        maps.reshape(batch * group, group_channels, height, width),
        grid,
        mode='bilinear',
        padding_mode='zeros',
        align_corners=False,
    )
    weights = mask.reshape(batch, rows * columns, group, points).transpose(1, 2)
    sums = (samples * weights.reshape(batch * group, 1, rows * columns, points)).sum(-1)
    sums = sums.reshape(batch, group * group_channels, rows, columns)
    return sums.permute(0, 2, 3, 1).contiguous()
