"""What spconv 2.3.8 and mmcv-full 1.7.2 lack for point clouds on the CPU; `compat` puts it in their place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]


@functools.cache
def _openmp_runtimes() -> Any:
    """The OpenMP runtimes of this process, looked up once (0.7 ms): spconv is loaded by now."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api='openmp')


@contextmanager
def _one_thread() -> Iterator[None]:
    """As `compat.single_thread`, for kernels that are called sixty times per sweep."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _openmp_runtimes().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def one_thread_on_cpu(function: Function) -> Function:
    """Let a function of spconv run with one OpenMP thread when its first argument is on the CPU.

    Args:
        function: takes a tensor first; what it does on other devices stays as it is.
    """

    @functools.wraps(function)
    def limited(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.is_cuda:
            return function(tensor, *args, **kwargs)
        with _one_thread():
            return function(tensor, *args, **kwargs)

    return limited


def convolution_on_cpu(indice_conv: Function, activate: Function) -> Function:
    """Give spconv's `indice_conv` what its CPU kernel refuses: a bias, an activation, and no voxel at all.

    Args:
        indice_conv: takes features (N, I), filters (O, k0, k1, k2, I), pairs, their numbers and N_out.
        activate: spconv's (features, act_type, act_alpha, act_beta) -> features.
    """

    @functools.wraps(indice_conv)
    def convolve(
        features: torch.Tensor,
        filters: torch.Tensor,
        pairs: torch.Tensor,
        numbers: torch.Tensor,
        rows: int,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if features.is_cuda:
            return indice_conv(features, filters, pairs, numbers, rows, *args, **kwargs)
        bias = kwargs.pop('bias', None)
        alpha, beta = kwargs.pop('act_alpha', 0.0), kwargs.pop('act_beta', 0.0)
        kind = kwargs.pop('act_type', None)
        if len(features):
            out = indice_conv(features, filters, pairs, numbers, rows, *args, **kwargs)
        else:
            out = features.new_zeros(rows, filters.shape[0])
        if bias is not None:
            out = out + bias
        return out if kind is None else activate(out, kind, alpha, beta)

    return convolve


def gradient_on_cpu(indice_conv_backward: Function) -> Function:
    """Give spconv's `indice_conv_backward` no voxel at all, which its CPU kernel refuses: gradients are 0."""

    @functools.wraps(indice_conv_backward)
    def gradient(
        features: torch.Tensor, filters: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if features.is_cuda or len(features):
            return indice_conv_backward(features, filters, *args, **kwargs)
        return features.new_zeros(features.shape), filters.new_zeros(filters.shape)

    return gradient


def dynamic_scatter_on_cpu(
    feats: torch.Tensor, coors: torch.Tensor, reduce_type: str = 'max'
) -> tuple[torch.Tensor, torch.Tensor]:
    """What mmcv's `dynamic_scatter` computes on a GPU, by torch's own operators, gradients included.

    Args:
        feats: (N, C) features of points.
        coors: (N, D) integer voxel of each point; points with a negative one belong to no voxel.
        reduce_type: 'mean', 'sum' or 'max' over the points of a voxel.

    Returns:
        (M, C) features and (M, D) coordinates of the voxels, in ascending order of coordinates. Of equal
        greatest values the gradient of 'max' goes to the first point.
    """
    import torch

    inside = (coors >= 0).all(1)
    feats, coors = feats[inside], coors[inside]
    voxels, point_to_voxel, counts = torch.unique(coors, dim=0, return_inverse=True, return_counts=True)
    if reduce_type == 'max':
        return _greatest(feats, point_to_voxel, len(voxels)), voxels
    sums = feats.new_zeros(len(voxels), feats.shape[1]).index_add(0, point_to_voxel, feats)
    return (sums / counts[:, None].to(sums) if reduce_type == 'mean' else sums), voxels


def _greatest(feats: torch.Tensor, point_to_voxel: torch.Tensor, num_voxels: int) -> torch.Tensor:
    import torch

    index = point_to_voxel[:, None].expand_as(feats)
    values = feats.detach()
    best = values.new_empty(num_voxels, feats.shape[1]).scatter_reduce(
        0, index, values, 'amax', include_self=False
    )
    rows = torch.arange(len(feats))[:, None].expand_as(index)
    rows = torch.where(values == best.gather(0, index), rows, len(feats))
    first = rows.new_empty(best.shape).scatter_reduce(0, index, rows, 'amin', include_self=False)
    return feats.gather(0, first)
