"""Batch normalisation folded into convolutions, with the same bytes on every machine.

Only `+ - * /` and `sqrt` of numpy in float64, each of which IEEE 754 rounds correctly, and one rounding to
the weight's own type at the end. torch's float32 `sqrt` is MKL's: its last bit is another one on another make
of CPU, and with it the bytes of every folded weight.
"""

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

PROBE = 8
"""A convolution is tested on an image in which its dilated kernel has this many places along each side."""
BatchNorm = nn.modules.batchnorm._BatchNorm
"""Base of all batch normalisations, of `nn.SyncBatchNorm`, too."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """A convolution with its batch normalisation folded in.

    Attributes:
        weight: (out, in / groups, kh, kw) float64.
        bias: (out,) float64.
    """

    weight: np.ndarray
    bias: np.ndarray

    def put_into(self, conv: nn.Conv2d) -> None:
        """Give a convolution this weight and bias, in the type and on the device of its weight."""
        like = conv.weight
        conv.weight, conv.bias = (
            nn.Parameter(torch.from_numpy(array).to(like.device, like.dtype))
            for array in (self.weight, self.bias)
        )


@runtime_checkable
class Summed(Protocol):
    """A module whose parallel branches can be added up to one convolution, `conv`, such as RepVGG's."""

    def reparameterise(self) -> None:
        """Make `conv`, which computes the sum of the branches; they stay beside it. It is called once."""


PREPARATIONS: list[Callable[[nn.Module], None]] = []
"""Functions that prepare every module of a copy before it is folded; each skips modules of other types."""


def fuse(model: nn.Module) -> nn.Module:
    """Return an evaluation copy of the model with batch normalisation folded into convolutions.

    As mmcv's `fuse_conv_bn` does, a batch normalisation is folded into the `nn.Conv2d` before it among the
    children of one module, if the convolution is linear in its weight: one that standardises its weight
    (DetectoRS) would take the factors out again. In an `nn.Sequential` nothing but an `nn.Identity` may stand
    between the two. The normalisation becomes an `nn.Identity`; one without running statistics stays, and so
    does one that mmcv's ConvModule runs before its convolution. `Summed` modules fold themselves. A
    convolution that several modules share, each with a normalisation of its own (RetinaSepBNHead), becomes
    one of each.
    """
    fused = copy.deepcopy(model)
    fused.eval()  # by itself, since the `train` of some detectors returns None
    for module in list(fused.modules()):
        for prepare in PREPARATIONS:
            prepare(module)
        if isinstance(module, Summed):
            module.reparameterise()
    parent_counts = Counter(id(child) for module in fused.modules() for child in module.children())
    for parent, conv, norm in list(_pairs(fused)):
        if parent_counts[id(getattr(parent, conv))] > 1:
            setattr(parent, conv, copy.deepcopy(getattr(parent, conv)))
        fold_pair(getattr(parent, conv), getattr(parent, norm)).put_into(getattr(parent, conv))
        setattr(parent, norm, nn.Identity())
    return fused


def fold_pair(conv: nn.Conv2d, norm: nn.Module) -> Folded:
    """Return the weight and bias of `conv` with the normalisation after it folded in; both stay as they are.

    `norm` is a `BatchNorm` with running statistics. If it is an `nn.Identity`, it was folded before, and the
    convolution's own weight and bias are returned. A convolution without a bias, and a normalisation without
    weight and bias, count as those with zeros and ones.
    """
    weight = _double(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _double(conv.bias)
    if isinstance(norm, nn.Identity):
        return Folded(weight, bias)
    mean, variance = _double(norm.running_mean), _double(norm.running_var)
    gamma, beta = (
        np.full_like(mean, default) if array is None else _double(array)
        for array, default in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    with np.errstate(all='ignore'):  # damaged checkpoints give NaN, which is reported with its tensor later
        scale = gamma / np.sqrt(variance + norm.eps)
        return Folded(weight * scale[:, None, None, None], (bias - mean) * scale + beta)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield (parent, name of a convolution, name of the normalisation that follows it among its children)."""
    conv = None
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            # the children of mmcv's ConvModule do not stand in its `order`: it may normalise first
            order = getattr(module, 'order', None)
            adjacent = not isinstance(order, tuple) or ('conv', 'norm') in itertools.pairwise(order)
            # without running statistics it takes those of its input
            is_fixed = child.running_mean is not None
            if conv is not None and adjacent and is_fixed and _is_linear(getattr(module, conv)):
                yield module, conv, name
            conv = None
        elif isinstance(child, nn.Conv2d):
            conv = name
        else:
            yield from _pairs(child)
            # the children of other modules may run in another order than that of their registration
            if type(module).forward is nn.Sequential.forward and not isinstance(child, nn.Identity):
                conv = None


def _is_linear(conv: nn.Conv2d) -> bool:
    """Return whether twice the weight and bias give twice the output; a subclass is run to see it."""
    if type(conv) is nn.Conv2d:
        return True
    twice = copy.deepcopy(conv).eval()
    sides = [rate * (size - 1) + PROBE for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    drawn = torch.rand(1, conv.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    image = drawn.to(conv.weight)
    with torch.no_grad():
        expected = 2 * twice(image)
        for parameter in (twice.weight, twice.bias):
            if parameter is not None:
                parameter.mul_(2)
        return bool((twice(image) - expected).abs().max() <= 1e-4 * expected.abs().max())


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
