"""Optimisation profiles from text: smallest, usual and largest shape of every input with an open axis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.engines.tensorrt.build import Profile

    Sizes = tuple[int, int, int]
    """Smallest, usual and largest size of an axis."""

FORM = 'NAME=MIN/OPT/MAX, e.g. input=1x3x320x320/1x3x608x608/1x3x800x1344, or an axis: B=1/1/4'
"""What `--shapes` takes, for messages."""
SUM = re.compile(r'(?P<axis>.+?)(?P<offset>[+-]\d+)')
"""An axis that follows from another one: 'M0+1'."""


def parse_shapes(texts: Sequence[str]) -> dict[str, Profile]:
    """Return name -> shapes of values of `--shapes`: NAME=MIN/OPT/MAX, or NAME=SHAPE for all three.

    NAME is an input, or an open axis, whose shapes then have one size each. A shape is sizes joined by 'x' or
    commas.

    Raises:
        UsageError: another form, shapes of different ranks, sizes that shrink, or a name given twice.
    """
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
            raise UsageError(f'--shapes {text}: MIN, OPT and MAX have to have the same number of axes')
        if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
            raise UsageError(f'--shapes {text}: sizes have to grow from MIN over OPT to MAX')
        if name in profiles:
            raise UsageError(f'--shapes {text}: {name} is given twice')
        profiles[name] = (low, usual, high)
    return profiles


def profiles_of(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Profile]:
    """Return input -> profile of every input that has an open axis.

    Args:
        spec: spec of the graph.
        requested: name of an input or of an axis -> shapes, from `parse_shapes`. The sizes that one input
            gives an axis hold for all inputs that have it, and for axes that follow from it ('M0+1') and have
            no sizes of their own, which are not compared with it. A name of both is the input's.

    Raises:
        UsageError: an unknown name, a shape of another rank than the input or of another size along a fixed
            axis, two names that give an axis different sizes, or an axis without sizes. `smallest` and
            `multiple` of the spec are not compared.
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
            f'--shapes: the graph has open axes, and no sizes are given for {"; ".join(missing)}: give {FORM}'
        )
    return profiles


def _axes(spec: GraphSpec, requested: Mapping[str, Profile]) -> dict[str, Sizes]:
    """Return axis -> its three sizes, of all axes that `requested` names itself or through an input."""
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
    """Add the sizes that a name of `--shapes` gives an axis, or refuse them."""
    if isinstance(axis, int):
        if set(sizes) != {axis}:
            raise UsageError(f'--shapes {name}: gives {sizes} for an axis that is fixed at {axis}')
    elif axes.setdefault(axis, sizes) != sizes:
        raise UsageError(f'--shapes {name}: gives {sizes} for axis {axis}, another one gave {axes[axis]}')


def _sizes(axis: str, axes: Mapping[str, Sizes]) -> Sizes | None:
    """Return the three sizes of an axis, which may follow from those of another one; None without."""
    match = SUM.fullmatch(axis)
    if axis not in axes and match and match['axis'] in axes:
        low, usual, high = (size + int(match['offset']) for size in axes[match['axis']])
        return low, usual, high
    return axes.get(axis)
