"""Rules about single nodes of a libspconv file, and about its order of coordinates.

Values that the engine accepts and that must be mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.sparse.contract_fields import ERROR, INT8, WARNING, Violation
from mmdeploy_ext.sparse.ir import ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.sparse.contract_fields import Layer

    Found = Iterator[tuple[str, ...]]
    """Attribute, rule, message and perhaps severity of each violation of a node."""

ACTIVATIONS = ('', 'None', 'ReLU')
DOUBTFUL_ACTIVATIONS = ('Sigmoid', 'LeakyReLU')
"""Written by the reference exporter for spconv 2 modules; no known file has run with them."""
PRECISIONS = ('', 'fp16', INT8)
LAYOUTS = ('', 'NCHW', 'NCHW32', 'NHWzC')
TRIPLES = {'kernel_size': 1, 'stride': 1, 'padding': 0, 'dilation': 1}
"""Attribute -> its smallest value."""
FLAT = 4
"""A grid is flat along z: with this many times the cells of its shortest axis, z is probably another axis."""


def node_rules(layer: Layer) -> Iterator[Violation]:
    """Yield what is wrong with one node, without looking at others."""
    rules = [_ranges]
    if 'precision' in layer.values:
        rules.insert(0, _precision_names)
    if layer.op_type == 'ScatterDense':
        rules.insert(0, _scatter)
    if layer.is_convolution:
        rules = [_geometry, _arrays, _unread, *rules]
    for rule in rules:
        yield from (Violation(layer.name, *found) for found in rule(layer))


def _geometry(layer: Layer) -> Found:
    read = layer.values
    for name, least in TRIPLES.items():
        values = read[name]
        if values and (len(values) != 3 or min(values) < least):
            yield name, 'attribute-value', f'{name}={list(values)}, expected three values of at least {least}'
    activation = read['activation']
    if activation in DOUBTFUL_ACTIVATIONS:
        message = f'activation={activation!r}: nothing shows that the engine has it; it is known to run ReLU'
        yield 'activation', 'activation', message, WARNING
    elif activation not in ACTIVATIONS:
        message = f"activation={activation!r}; the engine knows 'ReLU' and 'None', in this spelling"
        yield 'activation', 'activation', message
    if read['output_bound'] < 1:
        message = f'output_bound={read["output_bound"]}: the engine makes room for no active site'
        yield 'output_bound', 'output-bound', message
    if read['fixed_launch_points'] < 1:
        message = f'fixed_launch_points={read["fixed_launch_points"]}, expected a positive number'
        yield 'fixed_launch_points', 'attribute-value', message
    if read['kernel_size'] == (1, 1, 1):
        message = (
            'a 1x1x1 kernel: users found it silently wrong in libspconv (Lidar_AI_Solution#300, #302); '
            '1x1x3 with zeros around the centre gives the same values'
        )
        yield 'kernel_size', 'pointwise-kernel', message, WARNING


def _arrays(layer: Layer) -> Found:
    weight, bias, kernel = layer.weight, layer.bias, layer.values['kernel_size']
    if weight.size:
        shape = list(weight.shape)
        if weight.ndim != 5 or (kernel and weight.shape[1:4] != kernel):
            message = f'weight is {shape}, expected [O, {", ".join(map(str, kernel))}, I]'
            yield 'weight', 'weight-shape', message
        elif bias.size and bias.shape != weight.shape[:1]:
            message = f'bias is {list(bias.shape)}, the weight {shape} has {weight.shape[0]} output channels'
            yield 'bias', 'bias-shape', message
    for name, array in (('weight', weight), ('bias', bias)):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            yield name, 'not-finite', f'{bad} of {array.size} values of the {name} are NaN or infinite'
    if weight.size and not weight.any():
        yield 'weight', 'all-zero', 'all weights are zero: was the checkpoint loaded?', WARNING


def _unread(layer: Layer) -> Found:
    """Yield attributes that say something the engine does not do, because it never reads them."""
    written, shape = layer.written, layer.weight.shape
    never = 'the engine never reads it and'
    for name, meant, does in (
        ('ndim', 3, 'computes three dimensions'),
        ('groups', 1, 'computes one group'),
        ('transposed', 0, 'computes an ordinary convolution'),
    ):
        if written[name] != meant:
            yield name, 'never-read', f'{name}={written[name]}: {never} {does}'
    if any(written['output_padding']):
        message = f'output_padding={list(written["output_padding"])}: {never} adds none'
        yield 'output_padding', 'never-read', message
    for name, axis in (('out_channels', 0), ('in_channels', -1)):
        if written[name] and len(shape) == 5 and written[name] != shape[axis]:
            yield name, 'weight-shape', f'{name}={written[name]}, the weight {list(shape)} has {shape[axis]}'


def _scatter(layer: Layer) -> Found:
    order, layout = layer.values['format'], layer.values['output_layout']
    if order not in ('', *ORDERS):
        yield 'format', 'attribute-value', f"format={order!r}; the engine knows 'xyz' and 'zyx'"
    if layout not in LAYOUTS:
        yield 'output_layout', 'attribute-value', f'output_layout={layout!r} reads as NCHW', WARNING


def _precision_names(layer: Layer) -> Found:
    for name in ('precision', 'output_precision'):
        if layer.values[name] not in PRECISIONS:
            message = f"{name}={layer.values[name]!r}: only 'int8' means int8, anything else reads as Float16"
            yield name, 'precision', message


def range_problem(value: float) -> str:
    """Return what is wrong with an amax, '' when it is a usable one."""
    if np.isnan(value):
        return 'is NaN'
    if value == 0:
        return 'is 0 or was never set'
    return '' if 0 < value < np.inf else f'is {value:g}'


def input_ranges(layer: Layer) -> dict[str, float]:
    """Return the ranges of a node's inputs, by attribute."""
    return {name: value for name, value in layer.values.items() if name.endswith('dynamic_range')}


def _ranges(layer: Layer) -> Found:
    """Yield unusable amax values: errors where the kernel computes in int8, warnings where it does not."""
    ranges = input_ranges(layer)
    computes = layer.values.get('precision') == INT8
    for name, value in ranges.items():
        problem = range_problem(value)
        if computes and problem:
            message = (
                f'precision is int8 and {name} {problem}; the engine divides by amax / 127 of it: the layer '
                f'gives zeros or NaN. Calibrate, or set precision to fp16'
            )
            yield name, 'amax', message
        elif problem and value != 0:
            yield name, 'amax', f'{name} {problem}; unused while precision is fp16', WARNING
    if layer.is_convolution:
        yield from _weight_ranges(layer, computes)
    if any(ranges.values()) and not any(layer.values.get(name) for name in ('precision', 'output_precision')):
        message = f'{next(iter(ranges))} is set, precision is not: the engine takes Float16'
        yield 'precision', 'precision', message, WARNING


def _weight_ranges(layer: Layer, computes: bool) -> Found:
    name = 'weight_dynamic_ranges'
    ranges, channels = layer.values[name], layer.weight.shape[0] if layer.weight.ndim == 5 else 0
    if computes and not ranges:
        message = f'precision is int8 and {name} is missing or empty; the engine has no scale for the weights'
        yield name, 'amax', message
    if ranges and channels and len(ranges) != channels:
        message = f'{name} has {len(ranges)} values, the weight has {channels} output channels'
        yield name, 'range-length', message
    bad = [index for index, value in enumerate(ranges) if range_problem(value)]
    if bad:
        shown = ', '.join(map(str, bad[:5])) + (' ...' if len(bad) > 5 else '')
        message = f'{name} {range_problem(ranges[bad[0]])} for {len(bad)} of {len(ranges)} channels ({shown})'
        yield name, 'amax', message, ERROR if computes else WARNING


def order_rules(layers: list[Layer], file_order: str) -> Iterator[Violation]:
    """Yield signs that the coordinate order is not the one that the file, or its name ('': none), states."""
    consumers = {layer.inputs[0]: layer for layer in layers if layer.inputs}
    for layer in layers:
        order, grid = layer.values.get('format'), layer.values.get('input_spatial_shape', ())
        if layer.op_type != 'ScatterDense' or order not in ORDERS:
            continue
        if file_order and order != file_order:
            message = (
                f"format={order!r}, the file's name says {file_order!r}: coordinates would be fed in the "
                f'wrong order'
            )
            yield Violation(layer.name, 'format', 'order', message)
        height = order.index('z')
        first = next((entry for entry in layers if entry.is_convolution), None)
        for where, shape in ((layer, grid), (first, first.written['input_spatial_shape'] if first else ())):
            if len(shape) == 3 and shape[height] > FLAT * min(shape):
                message = (
                    f'format={order!r} makes axis {height} z, but {list(shape)} of {where.name} has its '
                    f'shortest axis elsewhere: are coordinates, weights and shapes in the other order?'
                )
                yield Violation(layer.name, 'format', 'order', message, WARNING)
                break
        yield from _tail(layer, consumers.get(layer.output), order)


def _tail(scatter: Layer, after: Layer | None, order: str) -> Iterator[Violation]:
    """Yield a dense tail that merges another axis than z into the channels."""
    transposed = after is not None and after.op_type == 'Transpose'
    dims, height = after.values['dims'] if transposed else range(5), 2 + order.index('z')
    if len(dims) == 5 and dims[2] != height:
        message = (
            f'axis {dims[2]} of the dense tensor lies beside the channels, but format={order!r} of '
            f'{scatter.name} has z on axis {height}: the BEV map would be seen from the side'
        )
        yield Violation(after.name if transposed else scatter.name, 'dims', 'order', message)
