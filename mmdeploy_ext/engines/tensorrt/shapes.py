"""Optimisation profiles of inputs with open axes, from text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.io.index import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.engines.tensorrt.build import Profile
    from mmdeploy_ext.spec.tensors import GraphSpec

    Sizes = tuple[int, int, int]
    """Smallest, usual and largest size of an axis."""

FORM = 'NAME=MIN/OPT/MAX, e.g. input=1x3x320x320/1x3x608x608/1x3x800x1344, or an axis: B=1/1/4'
"""Form of `--shapes`, for messages."""
SUM = re.compile(r'(?P<axis>.+?)(?P<offset>[+-]\d+)')
"""An axis that follows from another: 'M0+1'."""


def parse_shapes(texts: Sequence[str]) -> dict[str, Profile]:
    """Parse `--shapes`: NAME=MIN/OPT/MAX or NAME=SHAPE, for an input or an open axis."""
    profiles: dict[str, Profile] = {}
    for text in texts:
        name, _, sizes = text.rpartition('=')
        parts = [part.replace(',', 'x').split('x') for part in sizes.split('/')]
        digits = all(number.isdecimal() for part in parts for number in part)
        if not (name and len(parts) in (1, 3) and digits):
            raise UsageError(f'--shapes {text}: expected {FORM}')
        shapes = [tuple(map(int, part)) for part in parts]
        low, usual, high = shapes if len(shapes) == 3 else shapes * 3
        if not len(low) == len(usual) == len(high):
            raise UsageError(f'--shapes {text}: MIN, OPT and MAX must have the same number of axes')
        if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
            raise UsageError(f'--shapes {text}: sizes must grow from MIN over OPT to MAX')
        if name in profiles:
            raise UsageError(f'--shapes {text}: {name} is given twice')
        profiles[name] = (low, usual, high)
    return profiles


def profiles_of(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Profile]:
    """Profile of each input with an open axis.

    Sizes that one input gives an axis hold for all inputs, and for dependent axes ('M0+1').
    """
    axes = _axes(spec, requested)
    profiles, missing = {}, []
    for tensor in spec.inputs:
        if not tensor.dynamic_axes:
            continue
        sizes = [(axis,) * 3 if isinstance(axis, int) else _sizes(axis, axes) for axis in tensor.axes]
        if None in sizes:
            unknown = [axis for axis in tensor.dynamic_axes.values() if _sizes(axis, axes) is None]
            missing.append(f'{tensor.name} {tensor.shape_text()} ({", ".join(unknown)})')
        else:
            profiles[tensor.name] = tuple(zip(*sizes, strict=True))
    if missing:
        raise UsageError(
            f'--shapes: the graph has dynamic axes without sizes: {"; ".join(missing)}: give {FORM}'
        )
    return profiles


def _axes(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Sizes]:
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    letters = {axis for tensor in spec.inputs for axis in tensor.dynamic_axes.values()}
    letters |= {match['axis'] for match in map(SUM.fullmatch, letters) if match}
    axes: dict[str, Sizes] = {}
    for name, (low, usual, high) in requested.items():
        if name in inputs:
            tensor = inputs[name]
            if len(low) != len(tensor.axes):
                raise UsageError(f'--shapes {name}: {len(low)} axes, the input is {tensor.shape_text()}')
            for axis, sizes in zip(tensor.axes, zip(low, usual, high, strict=True), strict=True):
                _add_axis(axes, name, axis, sizes)
        elif name in letters and len(low) == 1:
            _add_axis(axes, name, name, (low[0], usual[0], high[0]))
        else:
            names = [*inputs, *sorted(letters)]
            raise UsageError(
                f'--shapes {name}: is not an input or axis of the graph{did_you_mean(name, names)}; it has '
                f'{", ".join(names)}'
            )
    return axes


def _add_axis(axes: dict[str, Sizes], name: str, axis: int | str, sizes: Sizes) -> None:
    if isinstance(axis, int):
        if set(sizes) != {axis}:
            raise UsageError(f'--shapes {name}: gives {sizes} for an axis that is fixed at {axis}')
    elif axes.setdefault(axis, sizes) != sizes:
        raise UsageError(f'--shapes {name}: gives {sizes} for axis {axis}, another one gave {axes[axis]}')


def _sizes(axis: str, axes: Mapping[str, Sizes]) -> Sizes | None:
    match = SUM.fullmatch(axis)
    if axis not in axes and match and match['axis'] in axes:
        low, usual, high = (size + int(match['offset']) for size in axes[match['axis']])
        return low, usual, high
    return axes.get(axis)
