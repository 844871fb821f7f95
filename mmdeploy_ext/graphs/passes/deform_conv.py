"""Replace DeformConv by one GridSample and a convolution of 1x1, for engines that have no DeformConv.

Glossary: B batch, C, D channels of input and output, G groups of offsets, K taps of the kernel, row by row,
H, W of the map, h, w of the output.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import node_attributes, operator_name, opsets_of
from mmdeploy_ext.graphs.script import function_of, part, replace_by_functions

DOMAIN = 'mm2onnx.deform_conv'
"""Domain of the functions that are inlined at the end."""
LINEAR_SINCE = 20
"""The first opset in which GridSample calls its mode 'linear'; before it is 'bilinear'."""
FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))


def replace_deform_conv(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model in which supported DeformConv nodes are replaced, and whether anything changed.

    - DeformConv(X (B, C, H, W), W (D, C / group, kh, kw), offset[, bias, mask]) -> GridSample at all K places
      of each cell, (B * G, C / G, K * h, w), times the mask, and Conv of 1x1 over C * K channels. Places and
      samples are float32.
    - Not fired: float64, sub-graphs, local functions, volumes, weights of unknown size.

    Equal up to rounding: GridSample's places are off by up to 1e-7 * W pixels.
    """
    if all(operator_name(node) != 'DeformConv' for node in model.graph.node):
        return model, False
    tensor_types, opset = types.infer(model), opsets_of(model).get('', 0)

    def write(node: onnx.NodeProto, name: str) -> onnx.FunctionProto | None:
        return _function(node, name, tensor_types, opset) if is_replaced(node, tensor_types) else None

    return replace_by_functions(model, DOMAIN, write)


def is_replaced(node: onnx.NodeProto, tensor_types: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether `replace_deform_conv` replaces `node`."""
    if operator_name(node) != 'DeformConv':
        return False
    weight = tensor_types.get(node.input[1])
    shape = types.shape(weight)
    is_known = shape is not None and len(shape) == 4 and all(isinstance(size, int) for size in shape)
    return is_known and weight.tensor_type.elem_type in FLOATS


def _function(
    node: onnx.NodeProto, name: str, tensor_types: Mapping[str, onnx.TypeProto], opset: int
) -> onnx.FunctionProto:
    given = node_attributes(node)
    channels, height, width = types.shape(tensor_types[node.input[1]])[1:]
    taps, group, offset_group = height * width, given.get('group', 1), given.get('offset_group', 1)
    stride_y, stride_x = given.get('strides', (1, 1))
    # in front of y and x; pads behind show in the size of the offsets
    pads, dilations = given.get('pads', (0, 0)), given.get('dilations', (1, 1))
    taps_y, taps_x = np.divmod(np.arange(taps).reshape(-1, 1, 1), width)
    steps_y, steps_x = taps_y * dilations[0] - pads[0], taps_x * dilations[1] - pads[1]
    of_pairs, of_maps, of_columns = (
        [-1, taps, 2],
        [-1, channels * group // offset_group],
        [-1, channels * group * taps],
    )
    has_bias, has_mask = any(node.input[3:4]), any(node.input[4:5])
    mode = 'linear' if opset >= LINEAR_SINCE else 'bilinear'

    def deform_conv(op: Any) -> Callable[..., Any]:
        @part(op)
        def axis(moved, length, side, stride, shape, steps):
            regular = op.Reshape(op.Range(0, length, 1) * stride, shape) + steps
            at = op.Cast(regular, to=TensorProto.FLOAT) + moved
            float_side = op.Cast(side, to=TensorProto.FLOAT)
            near = op.Min(op.Max(at, -2.0), float_side + 1.0)
            flat = (near * 2.0 + (1.0 - float_side)) / float_side
            return op.Unsqueeze(flat, [-1])

        def body(x, weight, offset, bias, mask):
            sizes = op.Shape(offset, start=2)
            sides = op.Shape(x, start=2)
            pairs = op.Reshape(offset, op.Concat(of_pairs, sizes, axis=0))
            shifts = op.Cast(pairs, to=TensorProto.FLOAT)
            relative_y = axis(
                op.Gather(shifts, 0, axis=2),
                op.Gather(sizes, 0, axis=0),
                op.Gather(sides, [0], axis=0),
                stride_y,
                [-1, 1],
                steps_y,
            )
            relative_x = axis(
                op.Gather(shifts, 1, axis=2),
                op.Gather(sizes, 1, axis=0),
                op.Gather(sides, [1], axis=0),
                stride_x,
                [1, -1],
                steps_x,
            )
            rows = op.Gather(sizes, [0], axis=0) * taps
            width_of_map = op.Gather(sizes, [1], axis=0)
            places = op.Concat(relative_x, relative_y, axis=-1)
            grid = op.Reshape(places, op.Concat([-1], rows, width_of_map, [2], axis=0))
            maps = op.Reshape(x, op.Concat(of_maps, sides, axis=0))
            single = op.GridSample(
                op.Cast(maps, to=TensorProto.FLOAT), grid, mode=mode, padding_mode='zeros', align_corners=0
            )
            samples = op.CastLike(single, x)
            if has_mask:
                shares = op.Reshape(mask, op.Concat([-1], [1], rows, width_of_map, axis=0))
                counted = samples * shares
            else:
                counted = op.Identity(samples)
            columns = op.Reshape(counted, op.Concat(of_columns, sizes, axis=0))
            matrix = op.Reshape(weight, [0, -1, 1, 1])
            if has_bias:
                output = op.Conv(columns, matrix, bias, group=group, kernel_shape=[1, 1])
            else:
                output = op.Conv(columns, matrix, group=group, kernel_shape=[1, 1])
            return output

        return body

    function = function_of(deform_conv, DOMAIN, name, opset)
    absent = [key for key, is_there in (('bias', has_bias), ('mask', has_mask)) if not is_there]
    function.input[:] = [key for key in function.input if key not in absent]
    return function
