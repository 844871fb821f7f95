"""Convolution modules as the dialect knows them: their facts and kernels, and what it cannot express."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from spconv.pytorch import SparseConvTensor

from mmdeploy_ext.core.errors import ExportError

if TYPE_CHECKING:
    from spconv.pytorch.conv import SparseConvolution as ConvolutionModule

DEFAULT_BOUND = 200000


def convolution_input(path: str, args: tuple, kwargs: dict) -> SparseConvTensor:
    """Return the sparse tensor that a module is called with; ExportError where there is another argument."""
    values = [*args, *kwargs.values()]
    if len([value for value in values if value is not None]) != 1 or not isinstance(
        values[0], SparseConvTensor
    ):
        raise ExportError(
            f'{path}: is called with more than one sparse tensor; expected one SparseConvTensor'
        )
    return values[0]


def convolution_problem(path: str, module: ConvolutionModule) -> str:
    """Return what the dialect cannot express of a convolution, or ''."""
    kind = type(module).__name__
    if module.ndim != 3:
        return f'{path}: {kind} has {module.ndim} dimensions; the dialect knows 3'
    if module.transposed:
        return f'{path}: {kind} is a transposed convolution, which the engine does not read'
    if module.groups != 1:
        return f'{path}: {kind} has {module.groups} groups; the dialect knows 1'
    if module.act_type.name not in ('None_', 'ReLU'):
        return f'{path}: {kind} has the activation {module.act_type.name}; the dialect knows ReLU'
    return ''


def refuse_small_grid(path: str, module: ConvolutionModule, source: SparseConvTensor) -> None:
    """Raise an ExportError where a kernel does not fit on the grid."""
    if module.subm or module.inverse or module.transposed:
        return
    axes = zip(source.spatial_shape, module.kernel_size, module.padding, module.dilation, strict=True)
    for size, kernel, padding, dilation in axes:
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            raise ExportError(
                f'{path}: kernel {list(module.kernel_size)} does not fit on the grid {source.spatial_shape}; '
                f'the grid is too small for this encoder'
            )


def convolution_fields(module: ConvolutionModule) -> dict[str, Any]:
    """Return the fields of the graph's node that the module alone decides."""
    triples = 'kernel_size stride padding dilation output_padding'
    fields = {name: tuple(int(size) for size in getattr(module, name)) for name in triples.split()}
    bias = None if module.bias is None else module.bias.detach().cpu().numpy().copy()
    return fields | dict(
        weight=module_weight(module),
        bias=bias,
        subm=bool(module.subm),
        inverse=bool(module.inverse),
        rulebook=module.indice_key,
        activation='ReLU' if module.act_type.name == 'ReLU' else 'None',
        output_bound=int(getattr(module, 'output_bound', DEFAULT_BOUND)),
    )


def module_weight(module: ConvolutionModule) -> np.ndarray:
    """Return a convolution module's kernel as (O, k0, k1, k2, I) float32.

    spconv 2 multiplies by a 1x1x1 kernel's memory as if it were (I, O), whatever its shape says (its issue
    556): those are turned into what they compute.
    """
    weight = module.weight.detach().cpu().numpy()
    if module.conv1x1:
        inputs, outputs = module.in_channels, module.out_channels
        weight = weight.reshape(inputs, outputs).T.reshape(outputs, 1, 1, 1, inputs)
    return np.array(weight, np.float32, order='C')
