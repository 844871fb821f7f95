"""What torch functions between modules mean in a sparse graph."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mmdeploy_ext.exporting.sparse.trace_values import UnsupportedOperatorError, Value, Values
from mmdeploy_ext.sparse.ir import Add, BatchNorm, Relu, Reshape, Transpose

if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[Values, Callable, tuple, dict, Any], 'Value']

PROBE = (2, 3, 5, 7, 11, 13, 17, 19)
"""Sizes of a tensor of rank up to 8, all different: its shape tells the order of its axes."""


def record(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: Any) -> Value:
    """Record what a torch function did, and return what its result is.

    Raises:
        UnsupportedOperatorError: the dialect cannot express it.
    """
    if func == torch.Tensor.data.__get__:
        return recorder.lookup(args[0])
    name = getattr(func, '__name__', str(func))
    handler = HANDLERS.get(name.strip('_').removeprefix('i') if name.startswith('__') else name.rstrip('_'))
    if handler is None or not isinstance(result, torch.Tensor):
        raise UnsupportedOperatorError(
            f'{name} has no counterpart in the dialect (convolution, batch normalisation, ReLU and '
            f'addition on sites; scatter, transpose and reshape after them)'
        )
    return handler(recorder, func, args, kwargs, result)


def _same(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    return recorder.lookup(args[0])


def _dropout(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    training = kwargs.get('training', args[2] if len(args) > 2 else True)
    if training:
        raise UnsupportedOperatorError('dropout at random; expected evaluation mode')
    return recorder.lookup(args[0])


def _relu(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0] if args else kwargs['input'])
    _on_sites(value, 'ReLU')
    return recorder.add(Relu, (value,), True)


def _add(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    operands = [*args, *(kwargs[name] for name in ('input', 'other') if name in kwargs)][:2]
    if kwargs.get('alpha', 1) != 1:
        raise UnsupportedOperatorError(f'addition with alpha={kwargs["alpha"]}; the dialect adds with 1')
    values = tuple(recorder.lookup(operand) for operand in operands)
    for value in values:
        _on_sites(value, 'addition')
    if operands[0].shape != operands[1].shape:
        raise UnsupportedOperatorError(
            f'addition of {tuple(operands[0].shape)} and {tuple(operands[1].shape)}; expected equal shapes'
        )
    return recorder.add(Add, values, True)


def _batch_norm(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    if func is not functional.batch_norm:
        raise UnsupportedOperatorError(f'{func} is not torch.nn.functional.batch_norm')
    bound = inspect.signature(functional.batch_norm).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    value = recorder.lookup(given['input'])
    _on_sites(value, 'batch normalisation')
    mean, var = given['running_mean'], given['running_var']
    if given['training'] or mean is None or var is None:
        raise UnsupportedOperatorError(
            'batch normalisation by the statistics of its own input; it needs running statistics'
        )
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    gamma = ones if given['weight'] is None else given['weight']
    beta = zeros if given['bias'] is None else given['bias']
    arrays = dict(gamma=gamma, beta=beta, mean=mean, var=var)
    return recorder.add(
        BatchNorm,
        (value,),
        True,
        **{name: _array(tensor) for name, tensor in arrays.items()},
        eps=float(given['eps']),
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy(), np.float32)


def _on_sites(value: Value, what: str) -> None:
    if not value.sparse:
        raise UnsupportedOperatorError(
            f'{what} on the dense tensor; the dialect ends there; trace the encoder without what follows it'
        )


def _permutation(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0])
    if value.sparse:
        raise UnsupportedOperatorError(f'{func.__name__} of features on sites')
    probe = func(torch.empty(PROBE[: args[0].ndim], device='meta'), *args[1:], **kwargs)
    dims = tuple(PROBE.index(size) for size in probe.shape)
    if dims == tuple(range(len(dims))):
        return value
    return recorder.add(Transpose, (value,), False, dims=dims)


def _reshape(recorder: Values, func: Callable, args: tuple, kwargs: dict, result: torch.Tensor) -> Value:
    value = recorder.lookup(args[0])
    if result.shape == args[0].shape and result.dtype == args[0].dtype:
        return value
    if value.sparse or result.dtype != args[0].dtype:
        raise UnsupportedOperatorError(
            f'{func.__name__} of {tuple(args[0].shape)} to {tuple(result.shape)} {result.dtype}'
        )
    return recorder.add(Reshape, (value,), False, dims=tuple(result.shape))


HANDLERS: dict[str, Handler] = (
    dict.fromkeys(
        [
            'contiguous',
            'clone',
            'detach',
            'alias',
            'to',
            'float',
            'half',
            'double',
            'type',
            'type_as',
            'cpu',
            'cuda',
            'requires_grad',
        ],
        _same,
    )
    | dict.fromkeys(['permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis'], _permutation)
    | dict.fromkeys(
        ['view', 'reshape', 'flatten', 'unflatten', 'squeeze', 'unsqueeze', 'view_as', 'reshape_as'], _reshape
    )
    | dict.fromkeys(('add', 'radd'), _add)
    | {'relu': _relu, 'dropout': _dropout, 'batch_norm': _batch_norm}
)
