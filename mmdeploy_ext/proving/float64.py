"""PyTorch's results in float64, and draws of float32: how far two correct computations may differ.

PyTorch's own distance from float64 is one draw. In a slice of few values it may be small by chance, and
engines round differently. Draws run in float64 with random roundings, independent of the CPU.
Source: D. Stott Parker, Monte Carlo Arithmetic, 1997.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDER = {
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
    torch.Tensor.float: torch.Tensor.double,
}

WRITING = ('__setitem__', '__iadd__', '__isub__', '__imul__', '__itruediv__')
"""Functions that write into their first argument, beyond names ending in '_'."""

WEIGHTED = ('linear', 'conv1d', 'conv2d', 'conv3d')
"""Terms of a sum: values in an entry of the second tensor."""
TRANSPOSED = ('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
"""The second tensor's first axis is summed."""
ALONG_ROWS = (
    *('matmul', 'mm', 'bmm', '__matmul__', 'multi_head_attention_forward'),
    *('scaled_dot_product_attention', 'sum', 'mean', 'var', 'std', 'norm', 'cumsum', 'layer_norm'),
)
"""Terms of a sum: about the values in a row of the first tensor."""
OTHERS = ('bilinear', '__rmatmul__')
"""Other rules, see `_terms`."""
OF_FEW = (
    *('addmm', 'baddbmm', 'einsum', 'group_norm', 'batch_norm', 'instance_norm'),
    *('interpolate', 'grid_sample'),
)
"""Functions that add few terms, or an unknown number."""
TIMES_SIGMOID = ('silu', 'gelu')
BESIDE_ONE = ('sigmoid', *TIMES_SIGMOID)
"""Engines compute these as a half and a rest: small values round like 1.

ONNX Runtime's Sigmoid is off by up to 1.7e-7, at any value.
"""
WIDENED = 'mm2onnx_widened'
"""Attribute of float64 tensors in place of float32 ones."""
UNIT = 2.0**-23
"""Of float32, relative."""


class _Wider(TorchFunctionMode):
    """Passes float64 instead of float32 to operations, except tensors written into."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        is_written = name in WRITING or (name.endswith('_') and not name.endswith('__'))
        written = args[:1] if is_written else ()
        args, kwargs = pytree.tree_map(_wider, (args[len(written) :], kwargs or {}))
        return WIDER.get(func, func)(*written, *args, **kwargs)


class _Rounded(_Wider):
    """Rounds results as another correct float32 computation might, except in float64 code (times)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        kwargs = kwargs or {}
        if _is_double(func, pytree.tree_leaves((args, kwargs))):
            return super().__torch_function__(func, types, args, kwargs)
        if name in (*WEIGHTED, *TRANSPOSED, *ALONG_ROWS, *OTHERS, *OF_FEW):
            args, kwargs = self._in_another_order(name, *pytree.tree_map(_wider, (args, kwargs)))
        results = super().__torch_function__(func, types, args, kwargs)
        given = {_place(value) for value in pytree.tree_leaves((args, kwargs)) if _is_float64(value)}
        unit = UNIT * (args[0].abs() if name in TIMES_SIGMOID else 1.0) if name in BESIDE_ONE else 0.0

        def rounded(value: Any) -> Any:
            # keep the caller's views and written tensors
            if not _is_float64(value) or _place(value) in given:
                return _widened(value)
            if name in BESIDE_ONE:
                value = value + unit * self._noise(value)
                value = value if name in TIMES_SIGMOID else value.clamp(min=0)
            # a quarter of a unit: exact float32 values stay
            return _widened((value * (1 + UNIT / 4 * self._noise(value))).float().double())

        return pytree.tree_map(rounded, results)

    def _in_another_order(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Disturb the first factor like rounding in a sequential sum of n terms.

        It rounds n partial sums; they have half the variance of the sum.
        """
        leaves, tree = pytree.tree_flatten((args, kwargs))
        places = [index for index, leaf in enumerate(leaves) if _is_float64(leaf)]
        factors = [leaves[place] for place in places]
        if any(not torch.equal(factor, factor.round()) for factor in factors):  # else the sum is exact
            size = UNIT / 2 * max(_terms(name, factors, args, kwargs) / 2, 1) ** 0.5
            leaves[places[0]] = factors[0] * (1 + size * self._noise(factors[0]))
        return pytree.tree_unflatten(leaves, tree)

    def _noise(self, value: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(value.shape, dtype=torch.float32, generator=self.generator)
        return (2 * noise - 1).to(value.device)


def _terms(name: str, factors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    first = factors[0]
    if name in WEIGHTED and len(factors) > 1:
        return factors[1][:1].numel()
    if name in TRANSPOSED and len(factors) > 1:
        strides = kwargs.get('stride', args[3] if len(args) > 3 else 1)
        groups = kwargs.get('groups', args[6] if len(args) > 6 else 1)
        sides = factors[1].shape[2:]
        strides = strides if isinstance(strides, tuple | list) else [strides] * len(sides)
        taps = [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
        return factors[1].shape[0] // groups * math.prod(taps)
    if name == 'bilinear':
        return factors[2][:1].numel()
    if name == '__rmatmul__':  # sums columns of the right factor
        return first.shape[-2] if first.ndim > 1 else len(first)
    if name in ALONG_ROWS:
        return first.shape[-1] if first.ndim else 1
    return 2


def _is_double(func: Callable[..., Any], leaves: list[Any]) -> bool:
    """Whether code computes in float64 by itself, and asks for no float32."""
    floats = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    if func is torch.Tensor.float or any(leaf is torch.float32 for leaf in leaves):
        return False
    is_own = all(leaf.dtype == torch.float64 and not hasattr(leaf, WIDENED) for leaf in floats)
    return is_own and (bool(floats) or any(leaf is torch.float64 for leaf in leaves))


def _widened(value: Any) -> Any:
    """Mark a float64 tensor that stands for float32."""
    if _is_float64(value):
        setattr(value, WIDENED, True)
    return value


def _is_float64(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _wider(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(WIDER[value.dtype]) if value.dtype in WIDER else value
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextlib.contextmanager
def in_float64(module: Any, seed: int | None = None) -> Iterator[None]:
    """Run PyTorch in float64, with a module's weights; restore them.

    `seed`: of a draw's roundings, or None. Other libraries' operators get float64 weights and may raise.
    """
    modules = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    parameters = {id(p): (p, p.dtype) for part in modules for p in part.parameters(recurse=False)}
    buffers = [(part, dict(part._buffers)) for part in modules]
    default = torch.get_default_dtype()
    try:
        for parameter, dtype in parameters.values():
            parameter.data = _wider(parameter.data)
            if dtype == torch.float32:
                _widened(parameter)
        for part, named in buffers:
            part._buffers.update({name: _copied(buffer) for name, buffer in named.items()})
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), _Wider() if seed is None else _Rounded(seed):
            yield
    finally:
        torch.set_default_dtype(default)
        for parameter, dtype in parameters.values():
            parameter.data = parameter.data.to(dtype)  # exact, and no third copy of large weights
            parameter.__dict__.pop(WIDENED, None)
        for part, named in buffers:
            part._buffers.update(named)


def _copied(buffer: torch.Tensor | None) -> torch.Tensor | None:
    if buffer is None or buffer.dtype not in WIDER:
        return None if buffer is None else buffer.clone()
    return _widened(_wider(buffer.clone()))


def distance_of(array: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return absolute differences; 0 for other shapes, NaN and infinities."""
    if array.shape != exact.shape or array.dtype.kind not in 'fc':
        return np.zeros(array.shape)
    with np.errstate(invalid='ignore', over='ignore'):
        distance = np.abs(array.astype(np.complex128 if array.dtype.kind == 'c' else np.float64) - exact)
    return np.where(np.isfinite(distance), distance, 0.0)
