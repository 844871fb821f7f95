"""What spconv 2.3.8 needs on the CPU, each patch with its reason."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mmdeploy_ext.stack.import_hook import Execute, has_gpu, patch


@patch('spconv.pytorch.cppcore', 'spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_stream_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """The backward pass of spconv asks for the current CUDA stream also on the CPU; it gets 0."""
    execute()
    if has_gpu():
        return False
    module.get_current_stream = lambda: 0
    return True


@patch('spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_one_thread(module: ModuleType, execute: Execute) -> bool:
    """The CPU kernels of spconv race with more than one OpenMP thread, forward and backward: they get one.

    See `single_thread` for what was measured. The other operations of a model keep all threads, and so does
    the CUDA path.
    """
    execute()
    from mmdeploy_ext.stack.compat_sparse import one_thread_on_cpu

    for name in (
        'get_indice_pairs',
        'indice_conv',
        'indice_conv_backward',
        'indice_maxpool',
        'indice_maxpool_backward',
    ):
        setattr(module, name, one_thread_on_cpu(getattr(module, name)))
    return True


@patch('spconv.pytorch.conv', versions='spconv 2.3.8')
def spconv_convolution_on_cpu(module: ModuleType, execute: Execute) -> bool:
    """On the CPU spconv refuses a bias and an activation, which come after it here, and an empty sweep."""
    execute()
    from mmdeploy_ext.stack.compat_sparse import convolution_on_cpu, gradient_on_cpu

    ops = module.ops
    ops.indice_conv = convolution_on_cpu(ops.indice_conv, module._apply_act)
    ops.indice_conv_backward = gradient_on_cpu(ops.indice_conv_backward)
    return True


@patch('spconv.pytorch.core', versions='spconv 2.3.8, torch >= 2.9')
def spconv_dense_by_tuple(module: ModuleType, execute: Execute) -> bool:
    """SparseConvTensor.dense indexes by a list of tensors: torch warns that it will mean something else."""
    execute()

    def scatter_nd(indices: Any, updates: Any, shape: list[int]) -> Any:
        where = indices.reshape(-1, indices.shape[-1]).unbind(1)
        values = updates.reshape(-1, *shape[len(where) :])
        return updates.new_zeros(shape).index_put(where, values)

    module.scatter_nd = scatter_nd
    return True


@patch('spconv.pytorch.core', versions='spconv 2.3.8, torch 2.13.0')
def spconv_without_tracing_warning(module: ModuleType, execute: Execute) -> bool:
    """SparseConvTensor is traceable by torch.fx, which warns users of `is_fx_tracing` on stderr, once.

    Every process that made a sparse tensor printed it. The one warning is spent here, unseen.
    """
    execute()
    from torch.fx import _symbolic_trace

    warn = getattr(_symbolic_trace, 'is_fx_tracing_warning', None)
    if warn is None:
        return False
    disabled, _symbolic_trace.log.disabled = _symbolic_trace.log.disabled, True
    try:
        warn()
    finally:
        _symbolic_trace.log.disabled = disabled
    return True
