"""Patches of PyTorch 2.13 for its exporters, each a context manager that holds for the whole process."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils import checkpoint

from mmdeploy_ext.upstream.compat.import_hook import patched

POOLED_AXES = {
    f'{kind}_pool{axes}d': axes
    for kind in ('avg', 'max', 'adaptive_avg', 'adaptive_max')
    for axes in (1, 2, 3)
}


class _DirectCall:
    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """Call functions under a reentrant checkpoint directly; a trace sees one Python operator."""
    with mock.patch.object(checkpoint, 'CheckpointFunction', _DirectCall):
        yield


@contextlib.contextmanager
def without_empty_writes() -> Iterator[None]:
    """Leave `tensor[index] = value` without an element out of a trace, for Swin's masks."""
    write = torch.Tensor.__setitem__

    @functools.wraps(write)
    def write_elements(tensor: torch.Tensor, index: Any, value: Any) -> None:
        if _is_fixed(index):
            state = torch._C._get_tracing_state()
            torch._C._set_tracing_state(None)  # the reading is for this decision alone
            try:
                if tensor.numel() > 0 and tensor[index].numel() == 0:
                    return
            finally:
                torch._C._set_tracing_state(state)
        write(tensor, index, value)

    with mock.patch.object(torch.Tensor, '__setitem__', write_elements):
        yield


def _is_fixed(index: Any) -> bool:
    if isinstance(index, torch.Tensor):
        return not _depends_on_values(index)
    if isinstance(index, slice):
        return _is_fixed((index.start, index.stop, index.step))
    return all(map(_is_fixed, index)) if isinstance(index, tuple | list) else True


def _depends_on_values(tensor: torch.Tensor) -> bool:
    if torch._C._get_tracing_state() is None:
        return True
    nodes, value_names = [torch._C._get_value_trace(tensor).node()], set()
    while nodes:
        node = nodes.pop()
        if node.kind() == 'prim::Param':
            return True
        if node.kind() != 'aten::size':
            inputs = {value.debugName(): value for value in node.inputs()}
            nodes += [inputs[name].node() for name in inputs.keys() - value_names]
            value_names |= inputs.keys()
    return False


@contextlib.contextmanager
def linspace_of_one_step() -> Iterator[None]:
    """Give a traced `torch.linspace` of one step its start, where TorchScript writes 0 / 0."""
    linspace = torch.linspace

    def divided(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
        if not isinstance(steps, torch.Tensor):
            return _literal(linspace(start, end, steps, **options))
        dtype = options.pop('dtype', None) or torch.get_default_dtype()
        step = (end - start) / torch.clamp(steps - 1, min=1)
        return torch.arange(steps, **options).to(dtype) * step + start

    with mock.patch.object(torch, 'linspace', divided):
        yield


@contextlib.contextmanager
def linspace_of_its_type() -> Iterator[None]:
    """Give a traced `torch.linspace` its own type; TorchScript writes float64, which GridSample refuses."""
    linspace = torch.linspace

    def constant(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
        if isinstance(steps, torch.Tensor) and not any(isinstance(value, float) for value in (start, end)):
            return linspace(start, end, steps, **options)
        return _literal(linspace(float(start), float(end), int(steps), **options))

    with mock.patch.object(torch, 'linspace', constant):
        yield


def _literal(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values.tolist(), dtype=values.dtype, device=values.device)


@contextlib.contextmanager
def constant_linspace() -> Iterator[None]:
    """Make a traced `torch.linspace` of numbers a constant of its type; TorchScript writes float64."""
    linspace = torch.linspace

    def constant(start: Any, end: Any, steps: Any, *args: Any, **options: Any) -> torch.Tensor:
        state = torch._C._get_tracing_state()
        if state is None or any(isinstance(value, torch.Tensor) for value in (start, end, steps)):
            return linspace(start, end, steps, *args, **options)
        torch._C._set_tracing_state(None)
        try:
            return linspace(start, end, steps, *args, **options)
        finally:
            torch._C._set_tracing_state(state)

    with mock.patch.object(torch, 'linspace', constant):
        yield


@contextlib.contextmanager
def products_with_flags() -> Iterator[None]:
    """Multiply numbers by 1 or 0 in place of True or False, for which a trace has no operator (BEVFormer)."""
    multiply = torch.Tensor.__mul__

    @functools.wraps(multiply)
    def by_number(tensor: torch.Tensor, other: Any) -> torch.Tensor:
        is_flag = isinstance(other, bool) and tensor.dtype != torch.bool
        return multiply(tensor, int(other) if is_flag else other)

    with patched(torch.Tensor, __mul__=by_number, __rmul__=by_number):
        yield


@contextlib.contextmanager
def with_a_batch() -> Iterator[None]:
    """Pool maps (C, ...) (`POOLED_AXES`) as a batch of one, which TorchScript needs."""

    def batched(pool: Callable[..., Any], axes: int) -> Callable[..., Any]:
        @functools.wraps(pool)
        def pooled(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if input.dim() != axes + 1:
                return pool(input, *args, **kwargs)
            result = pool(input[None], *args, **kwargs)
            return tuple(part[0] for part in result) if isinstance(result, tuple) else result[0]

        return pooled

    with patched(F, **{name: batched(getattr(F, name), axes) for name, axes in POOLED_AXES.items()}):
        yield


@contextlib.contextmanager
def listed_values() -> Iterator[None]:
    """List `inputs()` and `outputs()` of a node; pybind11's iterators took a fifth of the CPU time."""
    with patched(
        torch._C.Node,
        inputs=lambda node: iter([node.inputsAt(index) for index in range(node.inputsSize())]),
        outputs=lambda node: iter([node.outputsAt(index) for index in range(node.outputsSize())]),
    ):
        yield
