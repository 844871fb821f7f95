"""mmcv's deformable convolutions as the standard DeformConv of opset 19.

Glossary: B batch, C, D channels of input and output, h, w height and width of the input, kh, kw of the
kernel, H, W of the offsets.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.operators.operator import LIBRARY_OPERATORS, LibraryOperator, place_of

MIN_OPSET = 19
SETTINGS = ('stride', 'padding', 'dilation', 'groups', 'deform_groups')
MODULE = 'mmcv.ops'
"""Name in `sys.modules`: mmcv need not be installed."""
CALLERS = ['DeformConv2d', 'ModulatedDeformConv2d', 'SAConv2d', 'deform_conv2d', 'modulated_deform_conv2d']
"""Classes and functions of mmcv's deformable convolutions, and classes that use them; families add theirs."""


class LeadingOffsets(torch.nn.Module):
    """A modulated deformable convolution (3 x 3, stride 1) with the offsets and mask of a larger map.

    mmcv does not look at their size: it reads them as one flat buffer per image, from its beginning.
    """

    def __init__(self, conv: torch.nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (B, D, h, w), the output of `conv` for maps `x` (B, C, h, w)."""
        return self.conv(x, _leading(offset, x), _leading(mask, x))


def _leading(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    channels, (height, width) = values.shape[1], x.shape[2:]
    flat = values.flatten(1)[:, : channels * height * width]
    return flat.reshape(x.shape[0], channels, height, width)


def _node(g: Any, inputs: tuple[Any, ...], weight: Any, *settings: Any) -> Any:
    for name, value in zip(SETTINGS, settings, strict=False):
        if isinstance(value, torch._C.Value):
            raise ExportError(
                f'deformable convolution: {name} is computed from a size, but ONNX needs a number: pass '
                f'one ({place_of(value.node())})'
            )
    stride, pads, dilation = map(_pair, settings[:3])
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
    return _node(g, (x, weight, offset), weight, *settings[:5])


def _modulated_symbolic(
    g: Any, x: Any, offset: Any, mask: Any, weight: Any, bias: Any, *settings: Any
) -> Any:
    if bias is None or bias.node().mustBeNone():
        bias = g.op('Constant', value_t=torch.zeros(weight.type().sizes()[0]))
    return _node(g, (x, weight, offset, bias, mask), weight, *settings)


@torch.library.custom_op('mm2onnx::deform_conv', mutates_args=())
def deform_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    deform_groups: int,
) -> torch.Tensor:
    """Convolve at offsets; torch.export traces this in place of mmcv's operators, versions 1 and 2.

    From x (B, C, h, w) float32, weight (D, C / groups, kh, kw), bias (D,), offset (B, deform_groups * kh * kw
    * 2, H, W) in cells of x and mask (B, deform_groups * kh * kw, H, W) to (B, D, H, W). Offsets, stride,
    padding and dilation have y before x. `bias` and `mask` may be None: zeros, and ones.
    """
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


@deform_conv.register_fake
def _shapes(x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


def _translate(
    x: Any,
    weight: Any,
    offset: Any,
    bias: Any = None,
    mask: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    deform_groups: int = 1,
) -> Any:
    from onnxscript import opset19

    if mask is not None and bias is None:  # comes before the mask
        bias = opset19.Constant(value_floats=[0.0] * weight.shape[0])
    return opset19.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        kernel_shape=list(weight.shape[2:]),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        offset_group=deform_groups,
    )


def _traced(forward: Any, names: Sequence[str], ctx: Any, *args: Any) -> torch.Tensor:
    if not torch.compiler.is_compiling():
        return forward(ctx, *args)
    arguments = dict(zip(names[1:], args, strict=False))
    bias = arguments.get('bias')
    return torch.ops.mm2onnx.deform_conv(
        arguments['input'],
        arguments['weight'],
        arguments['offset'],
        bias if isinstance(bias, torch.Tensor) else None,
        arguments.get('mask'),
        _pair(arguments.get('stride', 1)),
        _pair(arguments.get('padding', 0)),
        _pair(arguments.get('dilation', 1)),
        arguments.get('groups', 1),
        arguments.get('deform_groups', 1),
    )


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value)


@contextlib.contextmanager
def standard_deform_conv() -> Iterator[None]:
    """Export mmcv-full 1.7's deformable convolutions as DeformConv."""
    if MODULE not in sys.modules:
        yield
        return
    from mmcv.ops.deform_conv import DeformConv2dFunction
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction

    symbolics = {DeformConv2dFunction: _deform_symbolic, ModulatedDeformConv2dFunction: _modulated_symbolic}
    with contextlib.ExitStack() as stack:
        for function, symbolic in symbolics.items():
            names = list(inspect.signature(function.forward).parameters)
            forward = functools.partial(_traced, function.forward, names)
            methods = dict(forward=staticmethod(forward), symbolic=staticmethod(symbolic))
            stack.enter_context(patched(function, **methods))
        yield


LIBRARY_OPERATORS.append(
    LibraryOperator(
        ('deformable convolutions', 'DeformConv'),
        MIN_OPSET,
        CALLERS,
        standard_deform_conv,
        {torch.ops.mm2onnx.deform_conv.default: _translate},
    )
)
