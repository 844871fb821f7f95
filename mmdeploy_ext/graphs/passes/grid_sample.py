"""Replace GridSample by gathers, for engines that have no GridSample or get it wrong.

Glossary: N batch, C channels, H, W of the sampled map, h, w of the grid.
"""

import collections
import copy
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import node_attributes, operator_name, refill

SUPPORTED = dict(mode=(b'linear', b'bilinear'), padding_mode=(b'zeros',), align_corners=(0,))
"""Attribute of GridSample -> values with which it is replaced, the default first."""


def replace_grid_sample(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model in which supported GridSample nodes are replaced, and whether anything changed.

    - GridSample(X (N, C, H, W), grid (N, h, w, 2)), bilinear, zeros outside, corners not aligned -> four
      GatherElements over the flattened map, weighted; positions outside have weight 0.
    - Not fired: other modes and paddings, corners aligned, volumes, other types than float32, sub-graphs,
      local functions. An unknown type or rank counts as float32 and 4.

    Equal up to rounding for a finite grid; infinity gives NaN.
    """
    result = copy.deepcopy(model)
    if all(operator_name(node) != 'GridSample' for node in model.graph.node):
        return result, False
    nodes, changed, tensor_types = [], False, types.infer(model)
    names = collections.Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if operator_name(node) == 'GridSample' and _is_supported(node, tensor_types):
            name = node.name if names[node.name] == 1 else ''  # several nodes may share one
            nodes.extend(_Gathers(node, f'{name or index}/gather').nodes())
            changed = True
        else:
            nodes.append(node)
    if changed:
        refill(result.graph, node=nodes)
    return result, changed


def _is_supported(node: onnx.NodeProto, tensor_types: Mapping[str, onnx.TypeProto]) -> bool:
    for tensor_type in (tensor_types.get(name) for name in node.input):
        if len(types.shape(tensor_type) or ('N', 'C', 'H', 'W')) != 4:
            return False
        if tensor_type is not None and tensor_type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            return False
    values = node_attributes(node)
    return all(values.get(name, allowed[0]) in allowed for name, allowed in SUPPORTED.items())


class _Gathers:
    def __init__(self, node: onnx.NodeProto, prefix: str) -> None:
        self._map, self._grid = node.input
        self._output = node.output[0]
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []

    def nodes(self) -> list[onnx.NodeProto]:
        map_size = self._op('Shape', self._map)
        batch, channels, height, width = (self._row(map_size, axis) for axis in range(4))
        flat = self._op('Reshape', self._map, self._join(batch, channels, self._ints([-1])))
        grid_size = self._op('Shape', self._grid)
        rows, columns = (self._row(grid_size, axis) for axis in (1, 2))
        x, y = (
            self._pixels(self._op('Gather', self._grid, self._ints(axis, scalar=True), axis=3), length)
            for axis, length in ((0, width), (1, height))
        )
        low_x, low_y = self._op('Floor', x), self._op('Floor', y)
        fraction_x, fraction_y = self._op('Sub', x, low_x), self._op('Sub', y, low_y)
        corners = []
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            corner = self._shift(low_x, dx), self._shift(low_y, dy)
            weight = self._op('Mul', self._share(fraction_x, dx), self._share(fraction_y, dy))
            corners.append(self._corner(flat, (batch, channels), (height, width), corner, weight))
        output_size = [self._op('Sum', *corners), self._join(batch, channels, rows, columns)]
        result = helper.make_node('Reshape', output_size, [self._output], f'{self._prefix}/result')
        return [*self._nodes, result]

    def _pixels(self, relative: str, length: str) -> str:
        size = self._op('Cast', length, to=onnx.TensorProto.FLOAT)
        scaled = self._op('Mul', self._op('Add', relative, self._float(1.0)), size)
        return self._op('Mul', self._op('Sub', scaled, self._float(1.0)), self._float(0.5))

    def _shift(self, low: str, step: int) -> str:
        return self._op('Add', low, self._float(1.0)) if step else low

    def _share(self, fraction: str, step: int) -> str:
        return fraction if step else self._op('Sub', self._float(1.0), fraction)

    def _corner(
        self, flat: str, outer: tuple[str, str], size: tuple[str, str], corner: tuple[str, str], weight: str
    ) -> str:
        inside, clipped = [], []
        for coordinate, length in zip(corner, reversed(size), strict=True):
            last = self._op('Sub', self._op('Cast', length, to=onnx.TensorProto.FLOAT), self._float(1.0))
            on_map = self._op('Max', self._op('Min', coordinate, last), self._float(0.0))
            inside.append(self._op('Equal', on_map, coordinate))
            clipped.append(self._op('Cast', on_map, to=onnx.TensorProto.INT64))
        index = self._op('Add', self._op('Mul', clipped[1], size[1]), clipped[0])
        index = self._op('Reshape', index, self._join(outer[0], self._ints([1]), self._ints([-1])))
        index = self._op('Expand', index, self._join(self._ints([1]), outer[1], self._ints([1])))
        values = self._op('GatherElements', flat, index, axis=2)
        mask = self._op('Cast', self._op('And', *inside), to=onnx.TensorProto.FLOAT)
        weight = self._op('Mul', weight, mask)
        weight = self._op('Reshape', weight, self._join(outer[0], self._ints([1]), self._ints([-1])))
        return self._op('Mul', values, weight)

    def _row(self, size: str, axis: int) -> str:
        return self._op('Gather', size, self._ints([axis]), axis=0)

    def _join(self, *sizes: str) -> str:
        return self._op('Concat', *sizes, axis=0)

    def _float(self, value: float) -> str:
        return self._constant(np.float32(value))

    def _ints(self, values: int | Iterable[int], scalar: bool = False) -> str:
        return self._constant(np.asarray(values if scalar else list(values), np.int64))

    def _constant(self, value: np.ndarray | np.generic) -> str:
        return self._op('Constant', value=numpy_helper.from_array(np.asarray(value)))

    def _op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f'{self._prefix}/{op_type}_{len(self._nodes)}'
        self._nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name
