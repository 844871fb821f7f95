"""Attention and padding of transformer backbones from sizes that may change: Swin, PVT, PVTv2.

Glossary: B batch, h, w size of a map, L = h * w tokens, C channels, M side of a window.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.upstream.operators.attention import multi_head

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
