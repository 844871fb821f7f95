"""Convolve before an enlargement: both are linear, and the small map has fewer products.

A Conv behind a linear Resize is the sum over its taps (i, j) of A_i z_ij B_j'. z is a 1x1 Conv of the small
map; A_i (H, h) and B_j (w, W) interpolate, shift by the tap, and are zero in the padding. Maps that a Concat
puts beside the enlarged one keep a Conv of their own.

Glossary: N batch, C and O channels in and out, h, w the small map, H, W the result.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import (
    Index,
    claim_name,
    constant_value,
    node_attributes,
    operator_name,
    reads,
    refill,
)

LEAST_GAIN = 2
"""Products before over products after, from which on a convolution is moved."""
REPLACED = ('Concat', 'Constant', 'Identity', 'Resize')


def convolve_before_resize(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model with moved convolutions, equal up to rounding, and whether anything changed.

    Moved: Conv of one group with constant float32 weights, behind a linear Resize of height and width with
    known sizes, or a Concat of channels with such a Resize, where this at least halves the products.
    """
    if not any(operator_name(node) == 'Resize' for node in model.graph.node):
        return model, False
    graph = _Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        maps = graph.maps_of(node) if operator_name(node) == 'Conv' else []
        nodes += graph.moved(node, maps) if any(one.enlarged for one in maps) else [node]
    if not graph.constants:
        return model, False
    result = copy.deepcopy(model)
    used, kept = set(graph.index.outputs), []
    for node in reversed(nodes):
        if operator_name(node) in REPLACED and not used.intersection(node.output):
            continue
        kept.append(node)
        used.update(reads(node))
    refill(result.graph, node=reversed(kept))
    unused = {name for node in model.graph.node for name in reads(node)} - used
    constants = [tensor for tensor in result.graph.initializer if tensor.name not in unused]
    refill(result.graph, initializer=[*constants, *graph.constants])
    return result, True


@dataclasses.dataclass(frozen=True)
class _Enlarged:
    """A small map, and the matrices (H, h) and (W, w) that enlarge it."""

    source: str
    rows: np.ndarray
    columns: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Map:
    """A map that a Conv reads, and its places among the channels; `enlarged` if it pays to move the Conv."""

    name: str
    channels: slice
    enlarged: _Enlarged | None


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.index, self.types = Index(model), types.infer(model)
        self.used_names = {
            *self.index.constants,
            *(name for node in model.graph.node for name in node.output),
        }
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str) -> np.ndarray | None:
        if name in self.index.constants:
            return numpy_helper.to_array(self.index.constants[name])
        node = self.producer(name)
        if node is not None and operator_name(node) == 'Identity':  # equal constants are written once
            return self.constant(node.input[0])
        return None if node is None else constant_value(node)

    def producer(self, name: str) -> onnx.NodeProto | None:
        position = self.index.producer(name)
        return None if position is None else self.index.nodes[position]

    def shape(self, name: str) -> list[int | str | None]:
        return types.shape(self.types.get(name)) or []

    def maps_of(self, conv: onnx.NodeProto) -> list[_Map]:
        """Return the maps that a Conv reads, [] for a Conv that stays."""
        attributes, weight = node_attributes(conv), self.constant(conv.input[1])
        one_group = attributes.get('group', 1) == 1 and attributes.get('auto_pad', b'NOTSET') == b'NOTSET'
        bias = self.constant(conv.input[2]) if len(conv.input) > 2 else 0
        if weight is None or bias is None or weight.dtype != np.float32 or weight.ndim != 4 or not one_group:
            return []
        concat, size, names = self.producer(conv.input[0]), self.shape(conv.output[0])[2:], [conv.input[0]]
        if concat is not None and operator_name(concat) == 'Concat' and node_attributes(concat)['axis'] == 1:
            names = list(concat.input)
        maps, first = [], 0
        for name in names:
            channels = (*self.shape(name), None, None)[1]
            if not isinstance(channels, int):
                return []
            enlarged = self._enlarged(name)
            if (
                enlarged
                and _gain(enlarged, (weight.shape[0], channels, *weight.shape[2:]), size) < LEAST_GAIN
            ):
                enlarged = None
            maps.append(_Map(name, slice(first, first + channels), enlarged))
            first += channels
        return maps

    def _enlarged(self, name: str) -> _Enlarged | None:
        node = self.producer(name)
        if node is None or operator_name(node) != 'Resize':
            return None
        small, large = self.shape(node.input[0]), self.shape(name)
        if not len(small) == len(large) == 4 or not all(
            isinstance(one, int) for one in small[2:] + large[2:]
        ):
            return None
        scales: Sequence[float | None] = (None, None)
        if len(node.input) == 3 and node.input[2]:  # otherwise sizes
            given = self.constant(node.input[2])
            if given is None or given.size != 4:
                return None
            scales = given[2:]
        matrices = [
            interpolation(node_attributes(node), *sizes)
            for sizes in zip(small[2:], large[2:], scales, strict=True)
        ]
        return None if any(matrix is None for matrix in matrices) else _Enlarged(node.input[0], *matrices)

    def add_constant(self, array: np.ndarray, name: str) -> str:
        name = claim_name(name, self.used_names)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def moved(self, conv: onnx.NodeProto, maps: Sequence[_Map]) -> list[onnx.NodeProto]:
        """Return the nodes in the place of a Conv."""
        weight, nodes = self.constant(conv.input[1]), []
        title = conv.name or conv.output[0]

        def add(op_type: str, part: str, *inputs: str, **attributes: Any) -> str:
            name = claim_name(f'{title}/{part}', self.used_names)
            nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
            nodes[-1].metadata_props.extend(conv.metadata_props)
            return name

        summands = []
        for place, one in enumerate(entry for entry in maps if entry.enlarged):
            part = f'map_{place}'
            summands.append(self._moved_map(conv, one, weight[:, one.channels], part, add))
        rest = [one for one in maps if not one.enlarged]
        if rest:
            names = [one.name for one in rest]
            inputs = add('Concat', 'rest', *names, axis=1) if len(names) > 1 else names[0]
            own = np.concatenate([weight[:, one.channels] for one in rest], 1)
            own_weight = self.add_constant(own, f'{conv.input[1]}_of_the_rest')
            attributes = node_attributes(conv)
            summands.append(
                add('Conv', 'conv_of_the_rest', inputs, own_weight, *conv.input[2:], **attributes)
            )
        elif len(conv.input) > 2:
            bias = self.constant(conv.input[2]).reshape(1, -1, 1, 1)
            summands.append(self.add_constant(bias, conv.input[2]))
        while len(summands) > 1:
            summands = [add('Add', 'sum', *summands[:2]), *summands[2:]]
        nodes[-1].output[0], nodes[-1].name = conv.output[0], conv.name
        return nodes

    def _moved_map(self, conv: onnx.NodeProto, one: _Map, weight: np.ndarray, part: str, add: Any) -> str:
        outputs, channels, high, wide = weight.shape
        rows, columns = _taps(conv, one.enlarged, (high, wide))
        height, width = one.enlarged.rows.shape[1], one.enlarged.columns.shape[1]
        kernel = weight.transpose(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        named = {
            'weight': np.ascontiguousarray(kernel),
            'by_tap': np.array([0, outputs, high, wide, height, width]),
            'side_by_side': np.array([0, outputs, high * height, wide * width]),
            'columns': np.ascontiguousarray(columns.T),
            'rows': rows,
        }
        inputs = {
            name: self.add_constant(array, f'{conv.name}/{part}_{name}') for name, array in named.items()
        }
        taps = add('Conv', f'{part}_taps', one.enlarged.source, inputs['weight'])
        taps = add('Reshape', f'{part}_by_tap', taps, inputs['by_tap'])
        taps = add('Transpose', f'{part}_transposed', taps, perm=[0, 1, 2, 4, 3, 5])
        taps = add('Reshape', f'{part}_side_by_side', taps, inputs['side_by_side'])
        return add(
            'MatMul',
            f'{part}_rows',
            inputs['rows'],
            add('MatMul', f'{part}_columns', taps, inputs['columns']),
        )


def _taps(conv: onnx.NodeProto, enlarged: _Enlarged, kernel: Sequence[int]) -> list[np.ndarray]:
    """Return A (H, taps * h) and B (W, taps * w): the matrices of all taps of each axis, side by side."""
    attributes = node_attributes(conv)
    pads = attributes.get('pads', (0, 0, 0, 0))
    strides, dilations = attributes.get('strides', (1, 1)), attributes.get('dilations', (1, 1))
    joined = []
    for axis, matrix in enumerate((enlarged.rows, enlarged.columns)):
        span = len(matrix) + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1)
        starts = np.arange(0, span, strides[axis]) - pads[axis]
        padded = np.concatenate([matrix, np.zeros_like(matrix[:1])])
        places = starts[:, None] + np.arange(kernel[axis]) * dilations[axis]
        places[(places < 0) | (places >= len(matrix))] = len(matrix)
        joined.append(padded[places].reshape(len(starts), -1).astype(np.float32))
    return joined


def _gain(enlarged: _Enlarged, weight: Sequence[int], size: Sequence[int | str | None]) -> float:
    """Return the products of a Conv (O, C, k, k) with a result of `size`, over its products when moved."""
    outputs, channels, high, wide = weight
    if len(size) != 2 or not all(isinstance(one, int) for one in size):
        return 0
    (height, width), (tall, broad) = (enlarged.rows.shape[1], enlarged.columns.shape[1]), size
    taps = outputs * high * wide
    interpolated = taps * height * width * broad + outputs * tall * high * height * broad
    return taps * channels * tall * broad / (taps * channels * height * width + interpolated)


def interpolation(
    attributes: dict[str, Any], small: int, large: int, scale: float | None
) -> np.ndarray | None:
    """Return the matrix (large, small) by which a Resize enlarges an axis; None for another mode."""
    kind = attributes.get('coordinate_transformation_mode', b'half_pixel')
    further = any(
        attributes.get(key) for key in ('antialias', 'exclude_outside', 'axes', 'keep_aspect_ratio_policy')
    )
    if attributes.get('mode', b'nearest') != b'linear' or further:
        return None
    places, scale = np.arange(large, dtype=np.float64), scale or large / small
    if kind == b'align_corners':
        places *= (small - 1) / max(large - 1, 1)
    elif kind == b'asymmetric':
        places /= scale
    elif kind == b'half_pixel' or (kind == b'pytorch_half_pixel' and large > 1):
        places = (places + 0.5) / scale - 0.5
    else:
        return None
    places = places.clip(0, small - 1)
    low = places.astype(np.int64)
    matrix = np.zeros((large, small))
    matrix[np.arange(large), low] += 1 - (places - low)
    matrix[np.arange(large), np.minimum(low + 1, small - 1)] += places - low
    return matrix
