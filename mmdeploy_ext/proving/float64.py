"""PyTorch's results in float64: two right computations in float32 may be as far apart as it is from them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mmdeploy_ext.verdict.comparison import Rounding

WIDER = {
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
    torch.Tensor.float: torch.Tensor.double,
}

WRITING = ('__setitem__', '__iadd__', '__isub__', '__imul__', '__itruediv__')
"""Functions that write into their first argument, besides those with a last underscore."""


class _Wider(TorchFunctionMode):
    """Gives float64 in place of float32 to every operation, but for a tensor that it writes into."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        is_written = name in WRITING or (name.endswith('_') and not name.endswith('__'))
        written = args[:1] if is_written else ()
        args, kwargs = pytree.tree_map(_wider, (args[len(written) :], kwargs or {}))
        return WIDER.get(func, func)(*written, *args, **kwargs)


def _wider(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(WIDER[value.dtype]) if value.dtype in WIDER else value
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextlib.contextmanager
def in_float64(module: Any) -> Iterator[None]:
    """Run PyTorch in float64, with the weights of a module and all that is float32; restore them.

    Operators of other libraries get float64 weights and may raise.
    """
    modules = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    parameters = {id(p): (p, p.data) for part in modules for p in part.parameters(recurse=False)}
    buffers = [(part, dict(part._buffers)) for part in modules]
    default = torch.get_default_dtype()
    try:
        for parameter, data in parameters.values():
            parameter.data = _wider(data)
        for part, named in buffers:
            part._buffers.update({name: _copied(buffer) for name, buffer in named.items()})
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), _Wider():
            yield
    finally:
        torch.set_default_dtype(default)
        for parameter, data in parameters.values():
            parameter.data = data
        for part, named in buffers:
            part._buffers.update(named)


def _copied(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else _wider(buffer.clone())


def rounding_of(
    module: Any, reference: Mapping[str, np.ndarray], run: Callable[[], Mapping[str, np.ndarray]]
) -> Rounding:
    """Return the function that runs a module in float64 and compares `reference` with the results.

    A tensor of another shape there has the distance 0; where the run fails, nothing is known.
    """

    def compute() -> dict[str, np.ndarray]:
        try:
            with in_float64(module):
                results = run()
        except Exception:  # an operator of float32 alone, or code that asks for it
            return {}
        return {
            name: distance_of(array, results[name]) for name, array in reference.items() if name in results
        }

    return compute


def distance_of(array: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return absolute differences; 0 of other shapes, of NaN and infinities."""
    if array.shape != exact.shape or array.dtype.kind not in 'fc':
        return np.zeros(array.shape)
    with np.errstate(invalid='ignore', over='ignore'):
        distance = np.abs(array.astype(np.complex128 if array.dtype.kind == 'c' else np.float64) - exact)
    return np.where(np.isfinite(distance), distance, 0.0)
