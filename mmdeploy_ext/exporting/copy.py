"""The copy of a model that is exported, with parts changed to suit the exporters."""

import copy
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from mmdeploy_ext.base.errors import ExportError

STEPS = 12
"""The maximum runs over 2 ** STEPS cells: sides up to 16,384 pixels at stride 4."""
AXES = dict(bottom=(2, 1), top=(2, -1), right=(3, 1), left=(3, -1))
"""Mode of mmcv's corner pooling -> the axis of (B, C, h, w), and 1 if the maximum runs along it, else -1."""


@runtime_checkable
class Summed(Protocol):
    """A module with parallel branches that add up to one convolution, `conv`, such as RepVGG's."""

    def reparameterise(self) -> None:
        """Compute `conv` as the sum of the branches; called once."""


class SamePadding(nn.Conv2d):
    """A convolution to `ceil(size / stride)` cells; the last end of an axis gets the odd cell of padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides = [self._padding(x.shape[2 + axis], axis) for axis in (1, 0)]
        padded = nn.functional.pad(x, [pixels for side in sides for pixels in side])
        return nn.functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis]
        if stride == 1 or reach == 0:
            total = reach
        elif reach < stride - 1:
            raise ExportError(
                f'a convolution whose padding depends on its input: kernel {self.kernel_size}, stride '
                f'{stride}'
            )
        else:
            total = reach - (size - 1) % stride
        return total // 2, total - total // 2


class CornerMaximum(nn.Module):
    """`mmcv.ops.CornerPool` in standard operators: the largest value so far along an axis."""

    mode: str

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maxima of maps `x` (B, C, h, w); sides up to 2 ** STEPS."""
        axis, along = AXES[self.mode]
        for step in range(STEPS):
            moved = 2**step
            before, behind = (moved, 0) if along > 0 else (0, moved)
            sides = (before, behind, 0, 0) if axis == 3 else (0, 0, before, behind)
            padded, size = nn.functional.pad(x, sides, value=float('-inf')), x.shape[axis]
            x = torch.maximum(x, padded.narrow(axis, 0 if along > 0 else moved, size))
        return x


REPLACED = dict(Conv2dAdaptivePadding=SamePadding, CornerPool=CornerMaximum)
"""Name of a class of mmcv -> the class that replaces it."""


def replace_class(module: nn.Module) -> None:
    """Change the class of `module`, in place, if `REPLACED` has its name."""
    if kind := REPLACED.get(type(module).__name__):
        module.__class__ = kind


def keep_position_bias(module: nn.Module) -> None:
    """Add (M, T, T) `relative_position_bias` to a window attention (Swin): M heads, T tokens of a window."""
    table = getattr(module, 'relative_position_bias_table', None)
    index = getattr(module, 'relative_position_index', None)
    if not isinstance(table, torch.Tensor) or not isinstance(index, torch.Tensor) or table.ndim != 2:
        return
    tokens = math.isqrt(index.numel())
    if tokens**2 == index.numel():
        bias = table[index.flatten()].t().reshape(-1, tokens, tokens).contiguous()
        module.register_buffer('relative_position_bias', bias.detach())


class ConvolvedFocus(nn.Module):
    """mmdet's `Focus` of YOLOX with one strided convolution of weights 0 and 1 in place of four slices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maps of images (B, C, H, W) at half the size; H and W are even."""
        return self.conv(nn.functional.conv2d(x, self.patches, stride=2))


def convolve_focus(module: nn.Module) -> None:
    """Make `module` a `ConvolvedFocus` if it is mmdet's `Focus`; ncnn and others have no strided slices."""
    kind = type(module)
    if kind.__name__ != 'Focus' or kind.__module__ != 'mmdet.models.backbones.csp_darknet':
        return
    weight = module.conv.conv.weight
    channels = weight.shape[1] // 4
    patches = weight.new_zeros(4, channels, channels, 2, 2)
    for patch, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        patches[patch, :, :, row, column] = torch.eye(channels)
    module.register_buffer('patches', patches.flatten(0, 1).detach())
    module.__class__ = ConvolvedFocus


PREPARATIONS: list[Callable[[nn.Module], None]] = [replace_class, keep_position_bias, convolve_focus]


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model in evaluation mode; its parameters share the numbers of the model's."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):  # its weight is a result of others, which PyTorch does not copy
                with torch.no_grad():
                    hook(module, None)
    values = (value for module in model.modules() for value in vars(module).values())
    # PyTorch copies no instances of these, which losses of older code have
    kept = {id(value): value for value in values if isinstance(value, torch.autograd.Function)}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            kept[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    result = copy.deepcopy(model, memo=kept)
    _complete_copy(model, result)
    result.eval()  # by itself, since the `train` of some detectors returns None
    return result


def prepared(model: nn.Module) -> nn.Module:
    """Return a copy for an export, see `prepare`."""
    return prepare(copied(model))


def prepare(model: nn.Module) -> nn.Module:
    """Apply `PREPARATIONS` in place, add up the branches of `Summed` modules, and return the model."""
    for module in list(model.modules()):
        for change in PREPARATIONS:
            change(module)
        if isinstance(module, Summed):
            module.reparameterise()
    return model


def fused(model: nn.Module) -> nn.Module:
    """Return a copy with batch normalisation folded into convolutions by mmcv, for `--fuse-conv-bn`."""
    from mmcv.cnn import fuse_conv_bn

    return fuse_conv_bn(copied(model))


def _complete_copy(model: nn.Module, result: nn.Module) -> None:
    for original, part in zip(model.modules(), result.modules(), strict=False):
        if type(original) is not type(part):
            return
        for name, value in vars(original).items():
            if name not in vars(part):
                try:
                    vars(part)[name] = copy.deepcopy(value)
                except Exception:  # a lock, a file
                    vars(part)[name] = value
            elif isinstance(value, bool | int | float | str) and vars(part)[name] != value:
                vars(part)[name] = value
