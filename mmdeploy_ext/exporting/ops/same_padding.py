"""mmcv's convolutions that pad by the size of their input (EfficientNet), in integers."""

from __future__ import annotations

import torch
from torch import nn

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.exporting.fold import PREPARATIONS


class SamePadding(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` cells; what it pads is larger at the end.

    mmcv 1.7.2 divides sizes as floats and rounds up: traced by TorchScript, the graph divides integers and
    rounds down. Its arithmetic here is of integers, so that it holds for every size, traced or not.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, h, w)."""
        sides = [self._padding(x.shape[2 + axis], axis) for axis in (1, 0)]
        padded = nn.functional.pad(x, [pixels for side in sides for pixels in side])
        return nn.functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        """Return the pixels before and after the map, of the height (axis 0) or the width."""
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis]
        if stride == 1 or reach == 0:
            total = reach
        elif reach < stride - 1:
            raise ExportError(
                f'a convolution that pads by its input: kernel {self.kernel_size}, stride {stride}'
            )
        else:
            total = reach - (size - 1) % stride
        return total // 2, total - total // 2


def pad_by_integers(module: nn.Module) -> None:
    """Let a `Conv2dAdaptivePadding` of mmcv pad in integers, in place."""
    if type(module).__name__ == 'Conv2dAdaptivePadding':
        module.__class__ = SamePadding


PREPARATIONS.append(pad_by_integers)
