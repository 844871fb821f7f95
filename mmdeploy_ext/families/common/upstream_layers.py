"""Layers of mmdet 2.28.2 and mmcv 1.7.2 that no exporter follows, replaced in exported copies."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import deform_conv2d
from mmcv.ops.merge_cells import BaseMergeCell
from mmdet.models.necks import BFP
from torch import nn
from torch.nn import functional

from mmdeploy_ext.base.source_code import is_users
from mmdeploy_ext.exporting.copy import PREPARATIONS
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.operators.deform_conv import CALLERS, LeadingOffsets

TOODHead = mmdet_module('mmdet.models.dense_heads').TOODHead
AdaptivePadding = mmdet_module('mmdet.models.utils.transformer').AdaptivePadding
ShiftWindowMSA = mmdet_module('mmdet.models.backbones.swin').ShiftWindowMSA
SpatialReductionAttention = mmdet_module('mmdet.models.backbones.pvt').SpatialReductionAttention
DyHeadBlock = mmdet_module('mmdet.models.necks.dyhead').DyHeadBlock

WRAPPERS = 'mmcv.cnn.bricks.wrappers'
"""mmcv module of convolutions, linear and pooling layers that test for an empty input."""


def spell_out_leading_offsets(module: nn.Module) -> None:
    if isinstance(module, DyHeadBlock):
        module.spatial_conv_high = LeadingOffsets(module.spatial_conv_high)


def fix_sampled_sides(module: nn.Module) -> None:
    if isinstance(module, TOODHead):
        module.deform_sampling = sample_sides


def sample_sides(boxes: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Read each side of boxes (B, 4, h, w) at its offset (B, 8, h, w), y before x, in cells."""
    sides = 4
    return deform_conv2d(boxes, offset, boxes.new_ones((sides, 1, 1, 1)), 1, 0, 1, sides, sides)


class RepeatedPriors:
    """Repeats the priors of a level for another batch than the traced one."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.repeats: Any = 1

    def __getattr__(self, name: str) -> Any:
        if name == 'generator':  # of a copy, before it has its attributes
            raise AttributeError(name)
        return getattr(self.generator, name)

    def single_level_grid_priors(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a level's priors (repeats * A, 4) xyxy in pixels."""
        return self.generator.single_level_grid_priors(*args, **kwargs).repeat(self.repeats, 1)

    def count(self, head: nn.Module, inputs: tuple) -> None:
        batch = inputs[0][0].shape[0]
        # 1 in PyTorch; in a trace int() is the batch of the example, which is how many copies the head joins
        self.repeats = batch // int(batch)


def repeat_priors(module: nn.Module) -> None:
    if isinstance(module, TOODHead):
        module.prior_generator = RepeatedPriors(module.prior_generator)
        module.register_forward_pre_hook(module.prior_generator.count)


def pooled(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return maxima (B, C, H, W) of adaptive windows of (B, C, h, w), as PyTorch; H <= h, W <= w.

    Window i of n covers rows `floor(i * h / n)` to `ceil((i + 1) * h / n) - 1`; repeating the last row gives
    all windows the same number of rows.
    """
    x = x[:, :, _windows(x.shape[2], size[0], x)].amax(3)
    return x[..., _windows(x.shape[3], size[1], x)].amax(4)


def _windows(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    index = torch.arange(count, device=like.device)
    first, last = index * length // count, ((index + 1) * length + count - 1) // count - 1
    steps = torch.arange((length + count - 1) // count + 1, device=like.device)
    return torch.minimum(first[:, None] + steps, last[:, None])


def merged_size(x: torch.Tensor, size: tuple[int, ...], mode: str) -> torch.Tensor:
    """Resize a map (B, C, h, w) as mmcv's merge cells do."""
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
    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return each level plus the refined mean of all levels, (B, C, h, w)."""
        sizes = [level.shape[2:] for level in inputs]
        levels = range(len(inputs))
        coarse = self.refine_level
        gathered = [_resized(level, sizes[coarse], index < coarse) for index, level in enumerate(inputs)]
        mean = sum(gathered) / len(gathered)
        refined = mean if self.refine_type is None else self.refine(mean)
        return tuple(_resized(refined, sizes[level], level >= coarse) + inputs[level] for level in levels)


def _resized(x: torch.Tensor, size: Sequence[int], pool: bool) -> torch.Tensor:
    return pooled(x, size) if pool else functional.interpolate(x, size=size, mode='nearest')


def resize_by_integers(module: nn.Module) -> None:
    """Let mmcv's merge cell or mmdet's BFP resize by functions of this module, in place."""
    if isinstance(module, BaseMergeCell):
        module._resize = functools.partial(merged_size, mode=module.upsample_mode)
    elif type(module) is BFP:
        module.__class__ = Balanced


def run_as_torch_layer(module: nn.Module) -> None:
    cls = type(module)
    if cls.__module__ == WRAPPERS and not is_users(cls.forward):
        module.forward = functools.partial(cls.__mro__[1].forward, module)


PREPARATIONS += [
    spell_out_leading_offsets,
    resize_by_integers,
    fix_sampled_sides,
    repeat_priors,
    run_as_torch_layer,
]
CALLERS.append('TOODHead')
