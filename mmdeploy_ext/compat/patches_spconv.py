"""What spconv 2.3.8 needs on the CPU, each patch with its reason.

A function decorated by `after` is a patch: it is called for each module that the decorator names, with the
module, as soon as that has been imported, and returns False if there was nothing to do; its docstring begins
with the reason. The decorated name takes a function that runs the module's code, too, and returns a bool.
`versions` are those that the patch was tried with; other versions are patched, too. A patch for machines
`without_gpu` does nothing if torch sees a GPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compat.import_hook import after

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]
"""A function of spconv, or what stands for it."""


def _openmp_runtimes() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api='openmp')


@contextlib.contextmanager
def single_thread(runtimes: Callable[[], Any] = _openmp_runtimes) -> Iterator[None]:
    """Run the block with one thread in torch and every loaded OpenMP runtime; spconv 2.3.8 on CPU needs it.

    With more threads it has a race: 4 of 27,774 rows of a convolution were wrong, others in each run (one
    thread: within 1e-7 of a dense convolution, and faster). It brings an OpenMP runtime of its own, so
    torch.set_num_threads alone does not reach it.

    Args:
        runtimes: returns the threadpoolctl.ThreadpoolController of the runtimes to limit; by default of all
            OpenMP runtimes that are loaded when the block begins.

    Raises:
        ImportError: threadpoolctl is not installed.
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
"""For kernels that are called sixty times per sweep: looked up once (0.7 ms), spconv is loaded by then."""


def one_thread_on_cpu(function: Function) -> Function:
    """Return a function of spconv that runs with one OpenMP thread if its first argument is on the CPU.

    `function` takes a tensor first, as a positional argument.
    """

    @functools.wraps(function)
    def limited(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if tensor.is_cuda else _one_thread():
            return function(tensor, *args, **kwargs)

    return limited


def convolution_on_cpu(indice_conv: Function, activate: Function) -> Function:
    """Return an `indice_conv` that takes what spconv's CPU kernel refuses: bias, activation, no input voxel.

    On the CPU bias and activation are applied to the result of the kernel, and without an input voxel every
    output row is zero before them. Tensors on a GPU go to `indice_conv` unchanged.

    Args:
        indice_conv: takes features (N, I) of the input voxels, filters (O, k0, k1, k2, I), the pairs of input
            and output rows (2, k0 k1 k2, N) int32, the number of pairs of each place of the kernel
            (k0 k1 k2,) int32, and the number of output voxels. N input voxels, k0, k1, k2 kernel size, I
            input and O output channels.
        activate: spconv's (features, act_type, act_alpha, act_beta) -> features.
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


def gradient_on_cpu(indice_conv_backward: Function) -> Function:
    """Return an `indice_conv_backward` that takes no input voxel, too, which spconv's CPU kernel refuses.

    `indice_conv_backward` takes features and filters as those of `convolution_on_cpu`, and more, and returns
    the gradients of both; without a voxel on the CPU these are 0. All else goes to it unchanged.
    """

    @functools.wraps(indice_conv_backward)
    def gradient(features: torch.Tensor, filters: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        if features.is_cuda or len(features):
            return indice_conv_backward(features, filters, *args, **kwargs)
        return features.new_zeros(features.shape), filters.new_zeros(filters.shape)

    return gradient


@after('spconv.pytorch.cppcore', 'spconv.pytorch.ops', versions='spconv 2.3.8', without_gpu=True)
def spconv_stream_without_gpu(module: ModuleType) -> None:
    """The backward pass of spconv asks for the current CUDA stream also on the CPU; it gets 0."""
    module.get_current_stream = lambda: 0


@after('spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_one_thread(module: ModuleType) -> None:
    """The CPU kernels of spconv race with more than one OpenMP thread, forward and backward: they get one.

    See `single_thread` for what was measured. The other operations of a model keep all threads, and so does
    the CUDA path.
    """
    for name in ('indice_conv', 'indice_conv_backward', 'indice_maxpool', 'indice_maxpool_backward'):
        setattr(module, name, one_thread_on_cpu(getattr(module, name)))
    module.get_indice_pairs = one_thread_on_cpu(module.get_indice_pairs)


@after('spconv.pytorch.conv', versions='spconv 2.3.8')
def spconv_convolution_on_cpu(module: ModuleType) -> None:
    """On the CPU spconv refuses a bias, an activation and an empty sweep.

    The functions of `spconv.pytorch.ops` are wrapped, which all callers look up in that module;
    `spconv.pytorch.conv` imports it, so that `spconv_one_thread` has wrapped them before.
    """
    ops = module.ops
    ops.indice_conv = convolution_on_cpu(ops.indice_conv, module._apply_act)
    ops.indice_conv_backward = gradient_on_cpu(ops.indice_conv_backward)


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
    """SparseConvTensor is traceable by torch.fx, which warns users of `is_fx_tracing` on stderr, once.

    Every process that made a sparse tensor printed it. Here it is raised once with the logger disabled, after
    which torch does not raise it again.
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
