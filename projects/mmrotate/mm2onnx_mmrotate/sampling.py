"""Bilinear sampling of maps, as mmcv's `rotated_feature_align` and RoIAlign do it.

Glossary: B batch, C channels, n places, h, w size of a map.
"""

import torch


def bilinear_rows(maps: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the values (B, n, C) of maps (B, C, h, w) at rows y and columns x (B, n), float32.

    Row 0 and column 0 are the middle of the first cell. Beyond the middle of an outer cell its value holds
    for the length of one cell, to -1 and to h or w, and behind that is zero.
    """
    height, width = maps.shape[2:]
    outside = (y < -1) | (y > height) | (x < -1) | (x > width)
    y, x = y.clamp(min=0), x.clamp(min=0)
    low_y, high_y, share_y = _neighbours(y, height)
    low_x, high_x, share_x = _neighbours(x, width)
    cells = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    first = torch.arange(maps.shape[0], device=maps.device)[:, None] * (height * width)

    def values(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return cells[first + row * width + column]

    top = values(low_y, low_x) * (1 - share_x) + values(low_y, high_x) * share_x
    bottom = values(high_y, low_x) * (1 - share_x) + values(high_y, high_x) * share_x
    sampled = top * (1 - share_y) + bottom * share_y
    return torch.where(outside[..., None], torch.zeros_like(sampled), sampled)


def _neighbours(
    place: torch.Tensor, size: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the cells (B, n) before and behind places on an axis, and the share (B, n, 1) of the second."""
    low = place.floor().to(torch.int64).clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = torch.where(high > low, place - low, torch.zeros_like(place))
    return low, high, share[..., None]
