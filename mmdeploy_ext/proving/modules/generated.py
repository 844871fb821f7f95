"""Generated inputs: samples at other sizes of dynamic axes, and other values in their range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.base.arrays import to_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.proving.modules.calls import FileTensor, ModuleCall

STEP = 32


def dynamic_axes(
    inputs: Mapping[FileTensor, str], call: ModuleCall
) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
    """Return axis name -> its (tensor, axis) pairs, and axis name -> size."""
    places: dict[str, list[tuple[str, int]]] = {}
    sizes: dict[str, int] = {}
    for tensor, name in inputs.items():
        for axis, size in enumerate(tensor.axes or ()):
            if isinstance(size, str) and axis < call.tensors[name].ndim:  # a sample of fewer axes has failed
                letter = size or f'{tensor.name}[{axis}]'
                places.setdefault(letter, []).append((name, axis))
                sizes[letter] = call.tensors[name].shape[axis]
    return places, sizes


class Draws:
    """Seeded values of a call's tensors within the range that the samples have; bools are True or False."""

    def __init__(self, calls: Sequence[ModuleCall], seed: int) -> None:
        self.calls, self.first, self.rng = calls, calls[0], np.random.default_rng(seed)

    def range_of(self, name: str) -> tuple[float, float]:
        if self.first.tensors[name].dtype == torch.bool:
            return 0, 1
        values = np.concatenate([to_array(call.tensors[name]).real.ravel() for call in self.calls])
        values = values[np.isfinite(values)]
        return (values.min().item(), values.max().item()) if values.size else (0.0, 1.0)

    def uniform(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        low, high = self.range_of(name)
        tensor = self.first.tensors[name]
        shape = tuple(tensor.shape if shape is None else shape)
        if tensor.is_floating_point():
            return self._as_tensor(name, self.rng.uniform(low, high, shape))
        return self._as_tensor(name, self.rng.integers(int(low), int(high), shape, endpoint=True))

    def extremes(self, name: str) -> torch.Tensor:
        low, high = self.range_of(name)
        shape = tuple(self.first.tensors[name].shape)
        return self._as_tensor(name, np.where(self.rng.random(shape) < 0.5, low, high))

    def _as_tensor(self, name: str, values: np.ndarray) -> torch.Tensor:
        tensor = self.first.tensors[name]
        return torch.from_numpy(values.astype(to_array(tensor).dtype)).to(tensor.dtype)


def resized(
    calls: Sequence[ModuleCall], title: str, places: Sequence[tuple[str, int]], size: int, seed: int
) -> ModuleCall:
    """Return the first call with another size of axes: further entries are other samples', then drawn."""
    draws, first = Draws(calls, seed), calls[0]
    chosen = [first]
    for call in calls[1:]:
        fits = all(_fits(call.tensors[name], first.tensors[name], axis) for name, axis in places)
        if fits and not any(_is_same(call, other, places) for other in chosen):
            chosen.append(call)
    tensors: dict[str, torch.Tensor] = {}
    for name, axis in places:
        parts = [tensors[name]] if name in tensors else [call.tensors[name] for call in chosen]
        shape = list(parts[0].shape)
        shape[axis] = max(size - sum(part.shape[axis] for part in parts), 0)
        parts.append(draws.uniform(name, shape))
        tensors[name] = torch.cat(parts, axis).narrow(axis, 0, size)
    return first.replace(title, tensors)


def _fits(tensor: torch.Tensor, expected: torch.Tensor, axis: int) -> bool:
    sizes = zip(tensor.shape, expected.shape, strict=False)
    return tensor.ndim == expected.ndim and all(a == b for i, (a, b) in enumerate(sizes) if i != axis)


def _is_same(call: ModuleCall, other: ModuleCall, places: Sequence[tuple[str, int]]) -> bool:
    return all(torch.equal(call.tensors[name], other.tensors[name]) for name, _ in places)


def other_sizes(size: int, axis: int) -> tuple[int, ...]:
    """Return sizes to try: 1 and 2 more for the batch (axis 0); else 1 more, half."""
    if axis == 0:
        return size + 1, size + 2
    return (size + 1, size // 2) if size > 1 else (size + 1,)


def other_values(calls: Sequence[ModuleCall], names: Sequence[str], seed: int) -> Iterator[ModuleCall]:
    """Yield calls like the first one with generated values of the tensors `names`."""
    first, draws = calls[0], Draws(calls, seed)
    for name in names:
        if len(names) > 1:
            yield first.replace(f'{name} alone changed', {name: draws.uniform(name)})
    yield first.replace('random numbers', {name: draws.uniform(name) for name in names})
    yield first.replace('smallest and largest values', {name: draws.extremes(name) for name in names})
    floats = [name for name in names if first.tensors[name].is_floating_point()]
    if floats:
        yield first.replace('zeros', {name: torch.zeros_like(first.tensors[name]) for name in floats})


def calls_with_another(name: str, calls: Sequence[ModuleCall], seed: int) -> Iterator[ModuleCall]:
    """Yield the first call with other values of one tensor: do the results depend on it?"""
    first, tensor = calls[0], calls[0].tensors[name]
    following = ~tensor if tensor.dtype == torch.bool else tensor + 1
    replacements = [call.tensors[name] for call in (*calls[1:], *other_values(calls, [name], seed))]
    for replacement in (*replacements, following):
        is_equal = replacement.shape == tensor.shape and torch.equal(replacement, tensor)
        if not tensor.numel() or not is_equal:
            yield first.replace(f'{name} alone changed', {name: replacement})


def disturbed(calls: Sequence[ModuleCall], call: ModuleCall, seed: int) -> ModuleCall:
    """Return a call whose floats are off by rounding, zeros by that of the samples' usual values."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in call.tensors.items():
        if tensor.is_floating_point():
            values = torch.cat([one.tensors[name].flatten() for one in calls]).abs()
            values = values[(values > 0) & values.isfinite()]
            usual = values.median() if len(values) else values.new_ones(())
            noise = 2 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype) - 1
            tensors[name] = tensor + torch.finfo(tensor.dtype).eps * tensor.abs().clamp(min=usual) * noise
    return call.replace(call.title, tensors)
