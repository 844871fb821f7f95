"""Replace DeformConv by one GridSample and a convolution of 1x1, for engines that have no DeformConv.

Why: OpenVINO's reader of ONNX has none (measured: 2026.4.1), and TensorRT-RTX does not parse it (1.7.1.116).
At a border both sample alike: each of the four cells around a place counts as 0 where it is not on the map,
so that a place at -1 or before, or at H or behind, is 0. In GridSample that is `padding_mode='zeros'`.

Glossary: B batch, C, D channels of input and output, G groups of channels with offsets of their own, K taps
of the kernel, row by row, H, W of the map, h, w of the output.
"""

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import node_attributes, operator_name, opsets_of
from mmdeploy_ext.graph.passes.functions import replace_by_functions

DOMAIN = 'mm2onnx.deform_conv'
"""Domain of the functions that are inlined at the end."""
LINEAR_SINCE = 20
"""The first opset in which GridSample calls its mode 'linear'; before it is 'bilinear'."""
FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""Element types of the nodes that are replaced; ONNX Runtime has no GridSample of float64, which engines
without DeformConv do not have either."""
# TEXT is a function in ONNX's text syntax, with fields for `str.format`; what is written once for y and once
# for x is in AXIS. Places are pixels of the map, in float32 whatever the type of the node: float16 ends at an
# eighth of a pixel. They are cut off two pixels outside, where all samples are 0, since engines make integers
# of them.
TEXT = """
<opset_import: ["": {opset}], domain: "{domain}">
{name} ({inputs}) => (output) {{
    one = Constant <value = float {{1}}> ()
    two = Constant <value = float {{2}}> ()
    before = Constant <value = float {{-2}}> ()
    number_0 = Constant <value = int64 {{0}}> ()
    number_1 = Constant <value = int64 {{1}}> ()
    sizes_1 = Constant <value = int64[1] {{1}}> ()
    sizes_2 = Constant <value = int64[1] {{2}}> ()
    others = Constant <value = int64[1] {{-1}}> ()
    taps = Constant <value = int64[1] {{{taps}}}> ()
    sizes = Shape <start = 2> (offset)
    sides = Shape <start = 2> (input)
    of_pairs = Constant <value = int64[3] {{-1, {taps}, 2}}> ()
    shape_of_pairs = Concat <axis = 0> (of_pairs, sizes)
    given_pairs = Reshape (offset, shape_of_pairs)
    pairs = Cast <to = 1> (given_pairs)
{axes}
    grid_of_taps = Concat <axis = -1> (relative_x, relative_y)
    rows = Mul (taps, length_y)
    shape_of_grid = Concat <axis = 0> (others, rows, length_x, sizes_2)
    grid = Reshape (grid_of_taps, shape_of_grid)
    of_maps = Constant <value = int64[2] {{-1, {channels_of_offsets}}}> ()
    shape_of_maps = Concat <axis = 0> (of_maps, sides)
    given_maps = Reshape (input, shape_of_maps)
    maps = Cast <to = 1> (given_maps)
    single = GridSample <mode = "{mode}", padding_mode = "zeros", align_corners = 0> (maps, grid)
    samples = CastLike (single, input)
{masked}
    of_columns = Constant <value = int64[2] {{-1, {columns}}}> ()
    shape_of_columns = Concat <axis = 0> (of_columns, sizes)
    columns = Reshape (counted, shape_of_columns)
    shape_of_weight = Constant <value = int64[4] {{0, -1, 1, 1}}> ()
    matrix = Reshape (weight, shape_of_weight)
    output = Conv <group = {group}, kernel_shape = [1, 1]> (columns, matrix{bias})
}}
"""
AXIS = """
    number_{a} = Constant <value = int64 {{{place}}}> ()
    moved_{a} = Gather <axis = 2> (pairs, number_{a})
    place_{a} = Constant <value = int64[1] {{{place}}}> ()
    length_{a} = Gather <axis = 0> (sizes, place_{a})
    end_{a} = Gather <axis = 0> (sizes, number_{a})
    cells_{a} = Range (number_0, end_{a}, number_1)
    stride_{a} = Constant <value = int64 {{{stride}}}> ()
    first_{a} = Mul (cells_{a}, stride_{a})
    shape_of_first_{a} = Constant <value = int64[2] {{{spread}}}> ()
    spread_{a} = Reshape (first_{a}, shape_of_first_{a})
    steps_{a} = Constant <value = int64[{taps}, 1, 1] {{{steps}}}> ()
    regular_{a} = Add (spread_{a}, steps_{a})
    regular_float_{a} = Cast <to = 1> (regular_{a})
    at_{a} = Add (regular_float_{a}, moved_{a})
    given_side_{a} = Gather <axis = 0> (sides, place_{a})
    side_{a} = Cast <to = 1> (given_side_{a})
    behind_{a} = Add (side_{a}, one)
    not_before_{a} = Max (at_{a}, before)
    near_{a} = Min (not_before_{a}, behind_{a})
    doubled_{a} = Mul (near_{a}, two)
    to_centre_{a} = Sub (one, side_{a})
    from_centre_{a} = Add (doubled_{a}, to_centre_{a})
    flat_{a} = Div (from_centre_{a}, side_{a})
    relative_{a} = Unsqueeze (flat_{a}, others)
"""
MASKED = """
    shape_of_mask = Concat <axis = 0> (others, sizes_1, rows, length_x)
    shares = Reshape (mask, shape_of_mask)
    counted = Mul (samples, shares)
"""


def replace_deform_conv(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model in which supported DeformConv nodes are replaced, and whether anything changed.

    - DeformConv(X (B, C, H, W), W (D, C / group, kh, kw), offset, bias, mask), the last two or not ->
      GridSample at all K places of each cell, (B * G, C / G, K * h, w), times the mask, and Conv of 1x1 over
      C * K channels. Places and samples are float32, also those of a float16 node.
    - Not fired: float64, sub-graphs, local functions, volumes, a weight of which a size is not known. They
      stay as they are.

    Any size and batch work, also dynamic ones. The result is the same up to rounding: GridSample takes places
    as shares of a side, whose last bit is worth some 1e-7 * W pixels. In memory at a time: the samples of all
    images, B * C * K * h * w. The model stays as it is, and is returned itself if nothing changed.
    """
    if all(operator_name(node) != 'DeformConv' for node in model.graph.node):
        return model, False
    tensor_types, opset = types.infer(model), opsets_of(model).get('', 0)

    def write(node: onnx.NodeProto, name: str) -> onnx.FunctionProto | None:
        return _function(node, name, tensor_types, opset) if is_replaced(node, tensor_types) else None

    return replace_by_functions(model, DOMAIN, write)


def is_replaced(node: onnx.NodeProto, tensor_types: Mapping[str, onnx.TypeProto]) -> bool:
    """Return whether `node`, of the main graph, is a DeformConv that `replace_deform_conv` replaces.

    `tensor_types` is tensor name -> type, as `types.infer` gives them.
    """
    if operator_name(node) != 'DeformConv':
        return False
    weight = tensor_types.get(node.input[1])
    shape = types.shape(weight)
    is_known = shape is not None and len(shape) == 4 and all(isinstance(size, int) for size in shape)
    return is_known and weight.tensor_type.elem_type in FLOATS


def _function(
    node: onnx.NodeProto, name: str, tensor_types: Mapping[str, onnx.TypeProto], opset: int
) -> onnx.FunctionProto:
    values = node_attributes(node)
    channels, height, width = types.shape(tensor_types[node.input[1]])[1:]
    taps, group, offset_group = height * width, values.get('group', 1), values.get('offset_group', 1)
    strides, dilations = values.get('strides', (1, 1)), values.get('dilations', (1, 1))
    pads = values.get('pads', (0, 0))  # in front of y and x; those behind show in the size of the offsets
    rows, columns = [tap // width for tap in range(taps)], [tap % width for tap in range(taps)]
    axes = [
        AXIS.format(
            a=axis,
            place=place,
            stride=strides[place],
            spread=spread,
            taps=taps,
            steps=', '.join(str(step * dilations[place] - pads[place]) for step in steps),
        )
        for place, (axis, spread, steps) in enumerate((('y', '-1, 1', rows), ('x', '1, -1', columns)))
    ]
    has_bias, has_mask = any(node.input[3:4]), any(node.input[4:5])
    names = ['input', 'weight', 'offset', *['bias'] * has_bias, *['mask'] * has_mask]
    text = TEXT.format(
        opset=opset,
        domain=DOMAIN,
        name=name,
        inputs=', '.join(names),
        taps=taps,
        axes=''.join(axes),
        channels_of_offsets=channels * group // offset_group,
        mode='linear' if opset >= LINEAR_SINCE else 'bilinear',
        masked=MASKED if has_mask else '    counted = Identity (samples)',
        columns=channels * group * taps,
        group=group,
        bias=', bias' if has_bias else '',
    )
    return onnx.parser.parse_function(text)
