"""Modules of a model whose compiled operators have no CPU kernel, and what computes in their place."""

import sys

from torch import nn

from mmdeploy_ext.compat import flash_attention
from mmdeploy_ext.compat.dcnv3 import dcnv3_forward

MMCV_MODULES = ('MaskedConv2d', 'CARAFEPack', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack')
"""Modules of mmcv without a CPU kernel, which compute by `plain_kernels`."""


def notes_on(model: nn.Module) -> list[str]:
    """Return a sentence of a verdict for each class of a model that computes without its compiled kernel."""
    kinds = sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__)
    device = next((parameter.device.type for parameter in model.parameters()), 'cpu')
    notes = flash_attention.notes_on(model)
    for kind in kinds:
        is_of_mmcv = kind.__name__ in MMCV_MODULES and kind.__module__.startswith('mmcv.')
        if (is_of_mmcv and device == 'cpu') or _has_dcnv3_reference(kind):
            notes.append(
                f'{kind.__module__}.{kind.__qualname__} computes by the reference of mm2onnx in PyTorch, '
                f'and not by its compiled operator, which needs a GPU'
            )
    return notes


def _has_dcnv3_reference(kind: type) -> bool:
    """Return whether the module of a class has the function that `dcnv3_without_extension` puts there."""
    if kind.__name__ != 'DCNv3':  # `DCNv3_pytorch` beside it never calls the function
        return False
    function = getattr(sys.modules.get(kind.__module__), 'DCNv3Function', None)
    return getattr(function, 'apply', None) is dcnv3_forward
