"""Rules about one node of a libspconv file: values that the engine accepts and that must be mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.sparse.contract_fields import INT8, WARNING, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.sparse.contract_fields import Layer

ACTIVATIONS = ('', 'None', 'ReLU')
DOUBTFUL_ACTIVATIONS = ('Sigmoid', 'LeakyReLU')
"""Written by the reference exporter for spconv 2 modules; no known file has run with them."""
PRECISIONS = ('', 'fp16', INT8)
FORMATS = ('xyz', 'zyx')
LAYOUTS = ('', 'NCHW', 'NCHW32', 'NHWzC')
TRIPLES = {'kernel_size': 1, 'stride': 1, 'padding': 0, 'dilation': 1}
"""Attribute -> its smallest value."""


def node_rules(layer: Layer) -> Iterator[Violation]:
    """Yield what is wrong with one node, without looking at others."""
    if layer.is_convolution:
        yield from _geometry(layer)
        yield from _arrays(layer)
        yield from _unread(layer)
    if layer.op_type == 'ScatterDense':
        yield from _scatter(layer)
    if 'precision' in layer.values:
        yield from _precision_names(layer)
    yield from _ranges(layer)


def _geometry(layer: Layer) -> Iterator[Violation]:
    for name, least in TRIPLES.items():
        values = layer.values[name]
        if values and (len(values) != 3 or min(values) < least):
            message = f'{name}={list(values)}, expected three values of at least {least}'
            yield Violation(layer.name, name, 'attribute-value', message)
    activation = layer.values['activation']
    if activation in DOUBTFUL_ACTIVATIONS:
        message = f'activation={activation!r}: nothing shows that the engine has it; it is known to run ReLU'
        yield Violation(layer.name, 'activation', 'activation', message, WARNING)
    elif activation not in ACTIVATIONS:
        message = f"activation={activation!r}; the engine knows 'ReLU' and 'None', in this spelling"
        yield Violation(layer.name, 'activation', 'activation', message)
    if layer.values['output_bound'] < 1:
        message = f'output_bound={layer.values["output_bound"]}: the engine makes room for no active site'
        yield Violation(layer.name, 'output_bound', 'output-bound', message)
    if layer.values['fixed_launch_points'] < 1:
        message = f'fixed_launch_points={layer.values["fixed_launch_points"]}, expected a positive number'
        yield Violation(layer.name, 'fixed_launch_points', 'attribute-value', message)
    if layer.values['kernel_size'] == (1, 1, 1):
        message = (
            'a 1x1x1 kernel: users found it silently wrong in libspconv (Lidar_AI_Solution#300, #302); '
            '1x1x3 with zeros around the centre gives the same values'
        )
        yield Violation(layer.name, 'kernel_size', 'pointwise-kernel', message, WARNING)


def _arrays(layer: Layer) -> Iterator[Violation]:
    weight, bias, kernel = layer.weight, layer.bias, layer.values['kernel_size']
    if weight.size:
        shape = list(weight.shape)
        if weight.ndim != 5 or (kernel and weight.shape[1:4] != kernel):
            message = f'weight is {shape}, expected [O, {", ".join(map(str, kernel))}, I]'
            yield Violation(layer.name, 'weight', 'weight-shape', message)
        elif bias.size and bias.shape != weight.shape[:1]:
            message = f'bias is {list(bias.shape)}, the weight {shape} has {weight.shape[0]} output channels'
            yield Violation(layer.name, 'bias', 'bias-shape', message)
    for name, array in (('weight', weight), ('bias', bias)):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            message = f'{bad} of {array.size} values of the {name} are NaN or infinite'
            yield Violation(layer.name, name, 'not-finite', message)
    if weight.size and not weight.any():
        message = 'all weights are zero: was the checkpoint loaded?'
        yield Violation(layer.name, 'weight', 'all-zero', message, WARNING)


def _unread(layer: Layer) -> Iterator[Violation]:
    """Yield attributes that say something the engine does not do, because it never reads them."""
    never = 'the engine never reads it and'
    for name, meant, does in (
        ('ndim', 3, 'computes three dimensions'),
        ('groups', 1, 'computes one group'),
        ('transposed', 0, 'computes an ordinary convolution'),
    ):
        if layer.written[name] != meant:
            message = f'{name}={layer.written[name]}: {never} {does}'
            yield Violation(layer.name, name, 'never-read', message)
    if any(layer.written['output_padding']):
        message = f'output_padding={list(layer.written["output_padding"])}: {never} adds none'
        yield Violation(layer.name, 'output_padding', 'never-read', message)
    for name, axis in (('out_channels', 0), ('in_channels', -1)):
        said = layer.written[name]
        if said and layer.weight.ndim == 5 and said != layer.weight.shape[axis]:
            message = f'{name}={said}, the weight {list(layer.weight.shape)} has {layer.weight.shape[axis]}'
            yield Violation(layer.name, name, 'weight-shape', message)


def _scatter(layer: Layer) -> Iterator[Violation]:
    if layer.values['format'] not in FORMATS and layer.values['format']:
        message = f"format={layer.values['format']!r}; the engine knows 'xyz' and 'zyx'"
        yield Violation(layer.name, 'format', 'attribute-value', message)
    if layer.values['output_layout'] not in LAYOUTS:
        message = f'output_layout={layer.values["output_layout"]!r} reads as NCHW'
        yield Violation(layer.name, 'output_layout', 'attribute-value', message, WARNING)


def _precision_names(layer: Layer) -> Iterator[Violation]:
    for name in ('precision', 'output_precision'):
        if layer.values[name] not in PRECISIONS:
            message = f"{name}={layer.values[name]!r}: only 'int8' means int8, anything else reads as Float16"
            yield Violation(layer.name, name, 'precision', message)


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


def _ranges(layer: Layer) -> Iterator[Violation]:
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
            yield Violation(layer.name, name, 'amax', message)
        elif problem and value != 0:
            message = f'{name} {problem}; unused while precision is fp16'
            yield Violation(layer.name, name, 'amax', message, WARNING)
    if layer.is_convolution:
        yield from _weight_ranges(layer, computes)
    if any(ranges.values()) and not any(layer.values.get(name) for name in ('precision', 'output_precision')):
        message = f'{next(iter(ranges))} is set, precision is not: the engine takes Float16'
        yield Violation(layer.name, 'precision', 'precision', message, WARNING)


def _weight_ranges(layer: Layer, computes: bool) -> Iterator[Violation]:
    name = 'weight_dynamic_ranges'
    ranges, channels = layer.values[name], layer.weight.shape[0] if layer.weight.ndim == 5 else 0
    severity = {} if computes else {'severity': WARNING}
    if not ranges:
        if computes:
            message = (
                f'precision is int8 and {name} is missing or empty; the engine has no scale for the weights'
            )
            yield Violation(layer.name, name, 'amax', message)
        return
    if channels and len(ranges) != channels:
        message = f'{name} has {len(ranges)} values, the weight has {channels} output channels'
        yield Violation(layer.name, name, 'range-length', message)
    bad = [index for index, value in enumerate(ranges) if range_problem(value)]
    if bad:
        shown = ', '.join(map(str, bad[:5])) + (' ...' if len(bad) > 5 else '')
        message = f'{name} {range_problem(ranges[bad[0]])} for {len(bad)} of {len(ranges)} channels ({shown})'
        yield Violation(layer.name, name, 'amax', message, **severity)
