"""Patches of spconv 2.3.8 for the CPU, each with its reason."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.upstream.compat.import_hook import after

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]


def _openmp_runtimes() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api='openmp')


@contextlib.contextmanager
def single_thread(runtimes: Callable[[], Any] = _openmp_runtimes) -> Iterator[None]:
    """Run the block with one thread in torch and every loaded OpenMP runtime; spconv 2.3.8 on CPU needs it.

    With more threads 4 of 27,774 rows of a convolution were wrong, others in each run. spconv has an OpenMP
    runtime of its own, so torch.set_num_threads does not suffice.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with runtimes().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


_one_thread = functools.partial(single_thread, functools.cache(_openmp_runtimes))
"""Looked up once (0.7 ms) for kernels that are called sixty times per sweep."""


def one_thread_on_cpu(function: Function) -> Function:
    """Run a function of spconv with one OpenMP thread if its first argument is on the CPU."""

    @functools.wraps(function)
    def limited(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if tensor.is_cuda else _one_thread():
            return function(tensor, *args, **kwargs)

    return limited


def convolution_on_cpu(indice_conv: Function, activate: Function) -> Function:
    """Let `indice_conv` take a bias, an activation and no input voxel on the CPU.

    `indice_conv` takes features (N, I), filters (O, k0, k1, k2, I), pairs (2, k0 k1 k2, N) int32, their
    numbers (k0 k1 k2,) int32 and the number of output voxels.
    """

    @functools.wraps(indice_conv)
    def convolve(
        features: torch.Tensor,
        filters: torch.Tensor,
        indice_pairs: torch.Tensor,
        indice_pair_num: torch.Tensor,
        num_activate_out: int,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        pairs = indice_pairs, indice_pair_num, num_activate_out
        if features.is_cuda:
            return indice_conv(features, filters, *pairs, *args, **kwargs)
        bias, kind = kwargs.pop('bias', None), kwargs.pop('act_type', None)
        alpha, beta = kwargs.pop('act_alpha', 0.0), kwargs.pop('act_beta', 0.0)
        if len(features):
            out = indice_conv(features, filters, *pairs, *args, **kwargs)
        else:
            out = features.new_zeros(num_activate_out, filters.shape[0])
        if bias is not None:
            out = out + bias
        return out if kind is None else activate(out, kind, alpha, beta)

    return convolve


@after('spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_one_thread(module: ModuleType) -> None:
    """The CPU kernels of spconv race with more than one OpenMP thread."""
    for name in ('indice_conv', 'indice_maxpool', 'get_indice_pairs'):
        setattr(module, name, one_thread_on_cpu(getattr(module, name)))


@after('spconv.pytorch.conv', versions='spconv 2.3.8')
def spconv_convolution_on_cpu(module: ModuleType) -> None:
    """On the CPU spconv refuses a bias, an activation and an empty sweep."""
    ops = module.ops
    ops.indice_conv = convolution_on_cpu(ops.indice_conv, module._apply_act)


@after('spconv.pytorch.core', versions='spconv 2.3.8, torch >= 2.9')
def spconv_dense_by_tuple(module: ModuleType) -> None:
    """SparseConvTensor.dense indexes by a list of tensors: torch warns that it will mean something else."""

    def scatter_nd(indices: Any, updates: Any, shape: list[int]) -> Any:
        cells = indices.reshape(-1, indices.shape[-1]).unbind(1)
        values = updates.reshape(-1, *shape[len(cells) :])
        return updates.new_zeros(shape).index_put(cells, values)

    module.scatter_nd = scatter_nd


@after('spconv.pytorch.core', versions='spconv 2.3.8, torch 2.13.0')
def spconv_without_tracing_warning(module: ModuleType) -> bool | None:
    """SparseConvTensor is traceable by torch.fx, which warns users of `is_fx_tracing` on stderr.

    The warning is raised once here with the logger disabled.
    """
    from torch.fx import _symbolic_trace

    warn = getattr(_symbolic_trace, 'is_fx_tracing_warning', None)
    if warn is None:
        return False
    disabled, _symbolic_trace.log.disabled = _symbolic_trace.log.disabled, True
    try:
        warn()
    finally:
        _symbolic_trace.log.disabled = disabled
