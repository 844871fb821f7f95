"""Constants of a graph with the same bytes on every machine, computed by PyTorch code as it is.

torch's kernels are chosen by the CPU: its `sqrt`, `sin`, `log` and matrix products in float32 differ in their
last bits between models of CPU. A constant that is compared bit for bit must not come from them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class SameBytes(TorchFunctionMode):
    """Inside this context the functions of `FUNCTIONS` have results of the same bytes on every CPU.

    They are computed in more digits and rounded once to float32; `torch.linspace` alone is not, but has the
    roundings that it has on CPUs with AVX2: of its step, then of each value.

    It is for float32 tensors on the CPU that need no gradient, outside of a trace: results have no gradient,
    and those of other dtypes are rounded to float32 before they get their dtype. Torch's `+ - * /` on a CPU
    are rounded correctly and left as they are, and so is every function that `FUNCTIONS` lacks, such as
    `matmul`, `pow` or `sum`, although its bytes differ by CPU: `tests/mmdeploy_ext/exporting/
    test_same_bytes.py` shows that the constants of the exports do not come from them. A `layer_norm` over
    more than the last axis is a NotImplementedError.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the replacement of `func`, if it has one, else `func`, and return the result.

        Torch calls this method with the types, `args` and `kwargs` of every call inside the context.
        """
        return FUNCTIONS.get(func, func)(*args, **(kwargs or {}))


def power(base: float, exponents: np.ndarray) -> np.ndarray:
    """Return base ** exponents as float32 of the shape of `exponents`, computed in long double, rounded once.

    Numpy and libm choose their transcendental functions by the CPU, too. In long double these functions err
    by less than 1e-18 of the value (1e-15 on machines whose long double is a double), so that the rounding to
    float32 differs for one value in some 1e11 (1e8).
    """
    return np.power(np.longdouble(base), exponents.astype(np.longdouble)).astype(np.float32)


def _elementwise(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[torch.Tensor], torch.Tensor]:
    def compute(input: torch.Tensor) -> torch.Tensor:
        with np.errstate(all='ignore'):
            return _like(function(input.detach().numpy().astype(np.longdouble)), input)

    return compute


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply in float64, term after term: BLAS adds in an order of each CPU."""
    values, factors = (tensor.detach().double().numpy() for tensor in (input, weight))
    total = np.zeros((*values.shape[:-1], len(factors)))
    for column in range(values.shape[-1]):
        total += values[..., column, None] * factors[:, column]
    return _like(total if bias is None else total + bias.detach().double().numpy(), input)


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: tuple[int, ...],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalise over the last axis in float64; `cumsum` adds in order."""
    if len(normalized_shape) != 1:
        raise NotImplementedError(f'layer_norm over {tuple(normalized_shape)}: expected the last axis alone')
    values = input.detach().double().numpy()
    centred = values - _mean(values)
    result = centred / np.sqrt(_mean(centred * centred) + eps)
    if weight is not None:
        result = result * weight.detach().double().numpy()
    return _like(result if bias is None else result + bias.detach().double().numpy(), input)


def _linspace(start: Any, end: Any, steps: int, **settings: Any) -> torch.Tensor:
    """Return evenly spaced float32 numbers as torch does on CPUs with AVX2: one rounding of `a * b + c`.

    The first half is counted from the start, the second one from the end. Products of float32 are exact in
    float64.
    """
    low, high = np.float32(start), np.float32(end)
    step = np.float32((high - low) / np.float32(max(steps - 1, 1)))
    index = np.arange(steps, dtype=np.float64)
    from_low, from_high = np.float64(step) * index + low, high - np.float64(step) * (steps - 1 - index)
    values = np.where(index < steps // 2, from_low, from_high) if steps > 1 else np.full(steps, low)
    return torch.from_numpy(values.astype(np.float32)).to(**settings)


def _mean(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values, axis=-1)[..., -1:] / values.shape[-1]


def _like(values: np.ndarray | np.floating, tensor: torch.Tensor) -> torch.Tensor:
    """Return values as a tensor of the type of another one, of float32 for whole numbers as torch does it."""
    result = torch.from_numpy(np.asarray(values).astype(np.float32))
    return result.to(tensor.dtype) if tensor.is_floating_point() else result


FUNCTIONS: dict[Callable, Callable] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.linspace: _linspace,
    **{
        getattr(owner, name): _elementwise(getattr(np, name))
        for name in ('cos', 'exp', 'log', 'sin', 'sqrt')
        for owner in (torch, torch.Tensor)
    },
}
"""Function of torch -> its replacement, which takes the same arguments except `out`; that of `linspace`, of
those by name alone, takes `dtype` and `device`."""
