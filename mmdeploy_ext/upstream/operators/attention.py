"""Attention that exports: multi-head in matrix products, deformable over several maps.

Glossary: B batch, M heads, D channels of a head, E = M * D embedding, L maps of height h and width w, P
points per map, Q queries, K keys, S = sum of h * w.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ExportError, ShapeError
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, length, register


def multi_head(
    sources: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mixed values (B, Q, E), before the projection of the result.

    - `sources`: queries (B, Q, E), keys (B, K, E) and values (B, K, E) before projection, positions added.
    - `weight`: (3 * E, E), the three projections, one below the other.
    - `bias`: (3 * E,).
    - `mask`: bool, broadcast to (B, M, Q, K); True hides a key from a query. A query without keys gives NaN.
    """
    shifts = (None,) * 3 if bias is None else bias.chunk(3)
    query, key, value = (  # (B, Q or K, E) as (B, M, Q or K, D)
        F.linear(source, part, shift).unflatten(-1, (heads, -1)).transpose(1, 2)
        for source, part, shift in zip(sources, weight.chunk(3), shifts, strict=True)
    )
    logits = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(mask, float('-inf'))
    mixed = logits.softmax(-1) @ value
    return mixed.transpose(1, 2).flatten(2)


def attend_maps(values: Sequence[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B * M, D, Q): the weighted samples of each map, summed.

    Args:
        values: per map (B * M, D, h, w).
        locations: (B, Q, M, L, P, 2) x, y; -1 and 1 are the outer edges of a map; cells outside count as 0.
        weights: (B * M, 1, Q, L * P), map by map, see `point_weights`.
    """
    sampled = []
    for level, value in enumerate(values):
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(value, grid, mode='bilinear', padding_mode='zeros', align_corners=False))
    return (torch.cat(sampled, -1) * weights).sum(-1)


def point_weights(logits: Tensor, heads: int) -> Tensor:
    """Return (B * M, 1, Q, L * P): the softmax of logits (B, Q, M * L * P) over the points of all maps."""
    return logits.unflatten(-1, (heads, -1)).softmax(-1).transpose(1, 2).flatten(0, 1)[:, None]


def attend_tokens(
    module: Any,
    query: Tensor,
    tokens: Tensor,
    keep: Tensor,
    sizes: Sequence[tuple[Any, Any]],
    reference_points: Tensor,
) -> Tensor:
    """Return the output (B, Q, E) of mmcv's module before dropout and `identity`, by `attend_maps`.

    Args:
        module: mmcv's `MultiScaleDeformableAttention`.
        query: (B, Q, E), positions added.
        tokens: (B, S, E), map by map, row by row.
        keep: (B, S, 1) float32, 0 for padding, else 1.
        sizes: (h, w) of each map, integers, or the symbols of an exporter.
        reference_points: see `sampling_locations`.
    """
    split = (module.num_heads, module.num_levels, module.num_points, 2)
    offsets = module.sampling_offsets(query).unflatten(-1, split)
    shapes = torch.stack([torch.stack([length(side) for side in size]) for size in sizes])
    locations = 2 * sampling_locations(reference_points, offsets, shapes) - 1
    values, begin = module.value_proj(tokens) * keep, 0
    maps = []
    for height, width in sizes:
        level = values[:, begin : begin + height * width].transpose(1, 2)
        maps.append(level.reshape(-1, level.shape[1] // split[0], height, width))
        begin = begin + height * width
    mixed = attend_maps(maps, locations, point_weights(module.attention_weights(query), split[0]))
    return module.output_proj(mixed.reshape(query.shape[0], query.shape[2], -1).transpose(1, 2))


def _eager(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    attended = multi_scale_deformable_attn_pytorch(
        value, spatial_shapes, sampling_locations, attention_weights
    )
    return attended.unflatten(2, value.shape[2:]).clone()


def _traceable(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    height, width = (spatial_shapes[:, axis][:, None] for axis in (0, 1))  # (L, 1)
    x = sampling_locations[..., 0] * width - 0.5  # (B, Q, M, L, P) pixels
    y = sampling_locations[..., 1] * height - 0.5
    parts = []
    for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = x.floor() + step_x, y.floor() + step_y
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * attention_weights
        index = level_start_index[:, None] + row.to(torch.int64) * width + column.to(torch.int64)
        # outside of a map: the first token of all, with no weight
        index, share = index * inside, share * inside
        flat = index.transpose(1, 2).flatten(2)[..., None]  # (B, M, Q * L * P, 1)
        rows = torch.gather(value.transpose(1, 2), 2, flat.expand(-1, -1, -1, value.shape[3]))
        weights = share.transpose(1, 2).flatten(3)  # (B, M, Q, L * P)
        parts.append((rows.unflatten(2, (-1, weights.shape[3])) * weights[..., None]).sum(3))
    return (parts[0] + parts[1] + parts[2] + parts[3]).transpose(1, 2)


def _example() -> tuple[Tensor, ...]:
    sizes = torch.tensor([[4, 5], [2, 3]], dtype=torch.int32)
    batch, heads, queries, points = 2, 3, 7, 4
    return (
        torch.rand(batch, 26, heads, 8),
        sizes,
        torch.tensor([0, 20], dtype=torch.int32),
        torch.rand(batch, queries, heads, 2, points, 2),
        torch.rand(batch, queries, heads, 2, points).flatten(3).softmax(-1).unflatten(3, (2, points)),
    )


MULTI_SCALE_DEFORMABLE_ATTENTION = register(
    Operator(
        'MultiScaleDeformableAttention',
        _eager,
        inputs=dict(
            value='B S M D',
            spatial_shapes='L 2',
            level_start_index='L',
            sampling_locations='B Q M L P 2',
            attention_weights='B Q M L P',
        ),
        outputs=('attended',),
        example=_example,
        traceable=_traceable,
        plugin=Plugin('MultiscaleDeformableAttnPlugin_TRT'),
    )
)


def attend(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the weighted samples of all maps, summed (B, Q, M * D).

    Args:
        value: (B, S, M, D) float32, map by map, row by row.
        spatial_shapes: (L, 2) integers, h and w.
        level_start_index: (L,) integers, start of each map in S.
        sampling_locations: (B, Q, M, L, P, 2) x, y; 0 and 1 are the outer edges of a map; cells outside count
            as 0.
        attention_weights: (B, Q, M, L, P).
    """
    sizes, starts = spatial_shapes.to(torch.int32), level_start_index.to(torch.int32)
    attended = MULTI_SCALE_DEFORMABLE_ATTENTION(value, sizes, starts, sampling_locations, attention_weights)
    return attended.flatten(2)


def sampling_locations(reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor) -> Tensor:
    """Return (B, Q, M, L, P, 2) x, y relative to the maps, not clipped; 0 and 1 are the outer edges.

    Args:
        reference_points: (B, Q, L, 2) points x, y, or (B, Q, L, 4) boxes cx, cy, w, h, relative to the maps.
        offsets: (B, Q, M, L, P, 2) x, y, in cells from a point, in 1 / P of half the width and height from a
            box's centre.
        spatial_shapes: (L, 2) integers h, w; not used for boxes.
    """
    centre = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 4:
        return centre + offsets / offsets.shape[4] * reference_points[:, :, None, :, None, 2:] * 0.5
    if reference_points.shape[-1] != 2:
        raise ShapeError(f'reference points of {reference_points.shape[-1]} values; expected 2 or 4')
    return centre + offsets / spatial_shapes.flip(1)[:, None]


# Attention and padding of transformer backbones from sizes that may change: Swin, PVT, PVTv2.
#
# Glossary: B batch, h, w size of a map, L = h * w tokens, C channels, M side of a window.


MASKED = -100.0
"""Swin's logit for a pair of cells that only the shift has brought together."""


class CornerPadding(nn.Module):
    """Zeros below and right of a map, so that a convolution covers it: mmdet's `AdaptivePadding`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.padding != 'corner':
            raise ExportError(f'a patch embedding with padding={self.padding!r}: expected "corner"')
        if self.stride == (1, 1) and self.kernel_size == (1, 1):
            return x
        below, right = (self._missing(x.shape[2 + axis], axis) for axis in (0, 1))
        return F.pad(x, (0, right, 0, below))

    def _missing(self, size: int, axis: int) -> int:
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis]
        if reach < stride - 1:
            raise ExportError(
                f'a patch embedding that pads: kernel {self.kernel_size}, stride {self.stride}; expected a '
                f'kernel that is not smaller than the stride'
            )
        return reach - (size - 1) % stride


class ShiftedWindows(nn.Module):
    """Attention inside windows of a map, shifted or not: mmdet's `ShiftWindowMSA` of Swin."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Return the tokens (B, L, C) after attention, without the residual `query` (B, L, C)."""
        (height, width), window, shift = hw_shape, self.window_size, self.shift_size
        channels = query.shape[2]
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        padding = (0, 0, 0, columns * window - width, 0, rows * window - height)
        padded = F.pad(query.reshape(-1, height, width, channels), padding)
        mask = None
        if shift:
            padded = torch.roll(padded, (-shift, -shift), (1, 2))
            mask = self._mask(rows, columns, query)
        cells = padded.reshape(-1, rows, window, columns, window, channels)
        windows = cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)
        attended = self.w_msa(windows, mask).reshape(-1, rows, columns, window, window, channels)
        merged = attended.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * window, columns * window, channels)
        if shift:
            merged = torch.roll(merged, (shift, shift), (1, 2))
        return self.drop(merged[:, :height, :width].reshape(-1, height * width, channels))

    def _mask(self, rows: int, columns: int, like: Tensor) -> Tensor:
        window = self.window_size

        def ends(windows: int) -> Tensor:
            size = windows * window
            cells = torch.arange(size, device=like.device)
            return (cells >= size - window).long() + (cells >= size - self.shift_size).long()

        regions = 3 * ends(rows)[:, None] + ends(columns)
        by_window = regions.reshape(rows, window, columns, window).permute(0, 2, 1, 3)
        flat = by_window.reshape(rows * columns, window * window)
        return (flat[:, None] != flat[:, :, None]).to(like.dtype) * MASKED


class ReducedAttention(nn.Module):
    """Attention to a coarser map of the same tokens: mmdet's `SpatialReductionAttention` of PVT."""

    def forward(self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor | None = None) -> Tensor:
        """Return the tokens (B, L, C) after attention of the tokens `x` (B, L, C), added to `identity`."""
        source = x
        if self.sr_ratio > 1:
            tokens = x.transpose(1, 2).reshape(-1, x.shape[2], *hw_shape)
            source = self.norm(self.sr(tokens).flatten(2).transpose(1, 2))
        attention = self.attn
        mixed = multi_head(
            (x, source, source), attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
        )
        shortcut = x if identity is None else identity
        return shortcut + self.dropout_layer(self.proj_drop(attention.out_proj(mixed)))


SIZED = dict(
    AdaptivePadding=CornerPadding,
    ShiftWindowMSA=ShiftedWindows,
    SpatialReductionAttention=ReducedAttention,
)
"""Class of mmdet -> its replacement here."""


@contextlib.contextmanager
def sizes_traced(module: nn.Module) -> Iterator[None]:
    """Give the modules of `SIZED` their replacement's class, inside the block."""
    parts = [part for part in module.modules() if type(part).__name__ in SIZED]
    classes = [type(part) for part in parts]
    try:
        for part in parts:
            part.__class__ = SIZED[type(part).__name__]
        yield
    finally:
        for part, cls in zip(parts, classes, strict=True):
            part.__class__ = cls
