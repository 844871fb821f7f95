"""Generated inputs: samples at other sizes of dynamic axes, and other values in their range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.util.arrays import to_array

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


def resized(call: ModuleCall, title: str, places: Sequence[tuple[str, int]], size: int) -> ModuleCall:
    """Return a call with another size of axes: entries are repeated, cut off, or zeros."""
    tensors = {}
    for name, axis in places:
        tensor = tensors.get(name, call.tensors[name])
        if tensor.shape[axis]:
            tensors[name] = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
        else:
            tensors[name] = tensor.new_zeros([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]])
    return call.replace(title, tensors)


def other_sizes(size: int, axis: int) -> tuple[int, ...]:
    """Return sizes to try: 1 and 2 more for the batch (axis 0); else 1 more, half."""
    if axis == 0:
        return size + 1, size + 2
    return (size + 1, size // 2) if size > 1 else (size + 1,)


def other_values(calls: Sequence[ModuleCall], names: Sequence[str], seed: int) -> Iterator[ModuleCall]:
    """Yield calls like the first one with generated values of the tensors `names`."""
    first, ranges = calls[0], {}
    for name in names:
        values = np.concatenate([to_array(call.tensors[name]).real.ravel() for call in calls])
        values = values[np.isfinite(values)]
        ranges[name] = (values.min().item(), values.max().item()) if values.size else (0.0, 1.0)
    rng = np.random.default_rng(seed)

    def drawn(name: str, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(to_array(first.tensors[name]).dtype)).to(
            first.tensors[name].dtype
        )

    def uniform(name: str) -> torch.Tensor:
        low, high = ranges[name]
        tensor = first.tensors[name]
        if tensor.is_floating_point():
            return drawn(name, rng.uniform(low, high, tuple(tensor.shape)))
        return drawn(name, rng.integers(int(low), int(high), tuple(tensor.shape), endpoint=True))

    for name in names:
        if len(names) > 1:
            yield first.replace(f'{name} alone changed', {name: uniform(name)})
    yield first.replace('random numbers', {name: uniform(name) for name in names})
    extremes = {}
    for name in names:
        low, high = ranges[name]
        picked = np.where(rng.random(tuple(first.tensors[name].shape)) < 0.5, low, high)
        extremes[name] = drawn(name, picked)
    yield first.replace('smallest and largest values', extremes)
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
