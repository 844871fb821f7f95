"""mmcv's deformable convolutions as the standard DeformConv of opset 19."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.exporting.exporter import LIBRARY_OPERATORS, LibraryOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_OPSET = 19
MODULE = 'mmcv.ops'
"""Who has not imported it has none of its convolutions, and may be without mmcv."""


def has_deform_conv(module: torch.nn.Module) -> bool:
    """Return whether the module contains one of mmcv's deformable convolutions."""
    if MODULE not in sys.modules:
        return False
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    return any(isinstance(child, DeformConv2d | ModulatedDeformConv2d) for child in module.modules())


class LeadingOffsets(torch.nn.Module):
    """A modulated deformable convolution whose offsets and mask were made for a larger map.

    mmdet's DyHead convolves level i + 1 with the offsets of level i. mmcv does not look at their size: it
    reads them as one flat buffer per image, from its beginning. This says so in operators.
    """

    def __init__(self, conv: torch.nn.Module) -> None:
        """Keep the convolution (stride 1), which takes input, offset, mask."""
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, h, w) with offsets (B, 18, H, W) and mask (B, 9, H, W); h <= H, w <= W."""
        return self.conv(x, _leading(offset, x), _leading(mask, x))


def _leading(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the first elements of each image's (D, H, W) values as (B, D, h, w)."""
    channels, (height, width) = values.shape[1], x.shape[2:]
    flat = values.flatten(1)[:, : channels * height * width]
    return flat.reshape(x.shape[0], channels, height, width)


def spell_out_leading_offsets(model: torch.nn.Module) -> torch.nn.Module:
    """Put `LeadingOffsets` around the convolutions of DyHead that rely on mmcv's reading, in place."""
    from mmdet.models.necks.dyhead import DyHeadBlock

    for block in model.modules():
        if isinstance(block, DyHeadBlock):
            block.spatial_conv_high = LeadingOffsets(block.spatial_conv_high)
    return model


def _node(g: Any, inputs: tuple[Any, ...], weight: Any, *settings: Any) -> Any:
    """Emit DeformConv; `settings` are stride, padding, dilation, groups, deform_groups of mmcv."""
    pairs = ([value] * 2 if isinstance(value, int) else list(value) for value in settings[:3])
    stride, pads, dilation = pairs
    return g.op(
        'DeformConv',
        *inputs,
        kernel_shape_i=weight.type().sizes()[2:],
        strides_i=stride,
        pads_i=[*pads, *pads],
        dilations_i=dilation,
        group_i=settings[3],
        offset_group_i=settings[4],
    )


def _deform_symbolic(g: Any, x: Any, offset: Any, weight: Any, *settings: Any) -> Any:
    """DCN v1. Offsets are (y, x) pairs per kernel tap in both mmcv and ONNX; bias and im2col_step follow."""
    return _node(g, (x, weight, offset), weight, *settings[:5])


def _modulated_symbolic(
    g: Any, x: Any, offset: Any, mask: Any, weight: Any, bias: Any, *settings: Any
) -> Any:
    """DCN v2. mmcv may pass no bias; ONNX wants one before the mask, so it gets zeros."""
    if bias is None or bias.node().mustBeNone():
        bias = g.op('Constant', value_t=torch.zeros(weight.type().sizes()[0]))
    return _node(g, (x, weight, offset, bias, mask), weight, *settings)


@contextlib.contextmanager
def standard_deform_conv() -> Iterator[None]:
    """Inside the block mmcv-full 1.7's deformable convolutions export as DeformConv, not as `mmcv::`."""
    if MODULE not in sys.modules:
        yield
        return
    from mmcv.ops.deform_conv import DeformConv2dFunction
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction

    symbolics = {DeformConv2dFunction: _deform_symbolic, ModulatedDeformConv2dFunction: _modulated_symbolic}
    saved = {function: function.__dict__['symbolic'] for function in symbolics}
    try:
        for function, symbolic in symbolics.items():
            function.symbolic = staticmethod(symbolic)
        yield
    finally:
        for function, symbolic in saved.items():
            function.symbolic = symbolic


LIBRARY_OPERATORS.append(
    LibraryOperator(
        ('deformable convolutions', 'DeformConv'), standard_deform_conv, MIN_OPSET, has_deform_conv
    )
)
