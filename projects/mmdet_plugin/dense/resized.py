"""Maps that NAS-FPN and BFP bring to each other's size, in arithmetic that a graph keeps for every size.

mmcv 1.7.2's merge cells pool with a kernel that they compute from the sizes, mmdet 2.28.2's BFP pools
adaptively: the exporters write neither unless both sizes are constants that divide each other.
"""

import functools
from collections.abc import Sequence

import torch
from mmcv.ops.merge_cells import BaseMergeCell
from mmdet.models.necks import BFP
from torch import nn
from torch.nn import functional

from mmdeploy_ext.exporting.fold import PREPARATIONS


def pooled(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return maxima (B, C, H, W) of adaptive windows of (B, C, h, w), as PyTorch does; H <= h, W <= w.

    Window i of n covers rows `floor(i * h / n)` to `ceil((i + 1) * h / n) - 1`; its last row is repeated
    where another window has one more.
    """
    x = x[:, :, _windows(x.shape[2], size[0], x)].amax(3)
    return x[..., _windows(x.shape[3], size[1], x)].amax(4)


def _windows(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """Return the rows of each window, (count, most rows of a window)."""
    place = torch.arange(count, device=like.device)
    first, last = place * length // count, ((place + 1) * length + count - 1) // count - 1
    steps = torch.arange((length + count - 1) // count + 1, device=like.device)
    return torch.minimum(first[:, None] + steps, last[:, None])


def merged_size(x: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """Return (B, C, h, w) enlarged, or padded with zeros and pooled, to `size`, as mmcv's merge cells do.

    Which of them is taken is decided by the traced sizes: a level is the finer one at every size.
    """
    if x.shape[-2:] == size:
        return x
    if x.shape[-2:] < size:
        return functional.interpolate(x, size=size, mode=mode)
    kernels = [(side + count - 1) // count for side, count in zip(x.shape[-2:], size, strict=True)]
    missing = [kernel * count - side for kernel, count, side in zip(kernels, size, x.shape[-2:], strict=True)]
    pads = [pad for side in reversed(missing) for pad in (side // 2, side - side // 2)]
    cells = functional.pad(x, pads)
    return cells.reshape(x.shape[0], x.shape[1], size[0], kernels[0], size[1], kernels[1]).amax((3, 5))


class Balanced(BFP):
    """BFP whose maps are resized by the functions of this module."""

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return every level plus the refined mean of all of them, each (B, C, h, w)."""
        sizes = [level.shape[2:] for level in inputs]
        levels = range(len(inputs))
        coarse = self.refine_level
        gathered = [_to(level, sizes[coarse], index < coarse) for index, level in enumerate(inputs)]
        mean = sum(gathered) / len(gathered)
        refined = mean if self.refine_type is None else self.refine(mean)
        return tuple(_to(refined, sizes[level], level >= coarse) + inputs[level] for level in levels)


def _to(x: torch.Tensor, size: Sequence[int], pool: bool) -> torch.Tensor:
    return pooled(x, size) if pool else functional.interpolate(x, size=size, mode='nearest')


def resize_by_integers(module: nn.Module) -> None:
    """Let a merge cell of mmcv or a BFP of mmdet resize by the functions of this module, in place."""
    if isinstance(module, BaseMergeCell):
        module._resize = functools.partial(merged_size, mode=module.upsample_mode)
    elif type(module) is BFP:
        module.__class__ = Balanced


PREPARATIONS.append(resize_by_integers)
