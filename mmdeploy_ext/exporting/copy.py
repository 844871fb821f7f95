"""The copy of a model that is exported, with parts in the form that exporters take; the model itself stays.

Batch normalisation is folded by PyTorch's own exporters, which run it in evaluation mode.
"""

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm


@runtime_checkable
class Summed(Protocol):
    """A module whose parallel branches can be added up to one convolution, `conv`, such as RepVGG's."""

    def reparameterise(self) -> None:
        """Make `conv`, which computes the sum of the branches; they stay beside it. It is called once."""


PREPARATIONS: list[Callable[[nn.Module], None]] = []
"""Functions that prepare every module of a copy for the export; each skips modules of other types.

The modules of this package and of projects that define such functions append them.
"""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model in evaluation mode, with every attribute of the model."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):  # its weight is a result of others, which PyTorch does not copy
                with torch.no_grad():
                    hook(module, None)
    values = (value for module in model.modules() for value in vars(module).values())
    # PyTorch copies no instances of these, which losses of older code have
    functions = {id(value): value for value in values if isinstance(value, torch.autograd.Function)}
    result = copy.deepcopy(model, memo=functions)
    _complete_copy(model, result)
    result.eval()  # by itself, since the `train` of some detectors returns None
    return result


def prepared(model: nn.Module) -> nn.Module:
    """Return a copy whose modules went through `PREPARATIONS`, `Summed` ones with their branches added up."""
    result = copied(model)
    for module in list(result.modules()):
        for prepare in PREPARATIONS:
            prepare(module)
        if isinstance(module, Summed):
            module.reparameterise()
    return result


def fused(model: nn.Module) -> nn.Module:
    """Return a copy whose batch normalisation mmcv has folded into convolutions, for `--fuse-conv-bn`."""
    from mmcv.cnn import fuse_conv_bn

    return fuse_conv_bn(copied(model))


def _complete_copy(model: nn.Module, result: nn.Module) -> None:
    """Give the modules of a copy the attributes that a `__getstate__` of the user's leaves out.

    A graph is made of the copy, and PyTorch's results of the model. Numbers and texts are those of the model,
    too; what cannot be copied is shared.
    """
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
