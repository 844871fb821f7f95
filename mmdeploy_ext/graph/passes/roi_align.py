"""Replace RoiAlign by gathers in a Loop, for engines that have no RoiAlign.

Why: TensorRT-RTX has no plugin for it (measured: 1.7.1.116). How many samples a cell of a region has depends
on the region, so that a Loop takes them one after the other, and no shape depends on values.

Glossary: B batch, C channels, H, W of the map, R regions, h, w cells of a region.
"""

from collections.abc import Mapping

import onnx
from onnx import helper

from mmdeploy_ext.graph.io.index import operator_name, opsets_of
from mmdeploy_ext.graph.passes.functions import replace_by_functions

DOMAIN = 'mm2onnx.roi_align'
"""Domain of the functions that are inlined at the end."""
_SIZES = dict(output_height=1, output_width=1, sampling_ratio=0, spatial_scale=1.0)
DEFAULTS = dict(mode='avg', coordinate_transformation_mode='half_pixel', **_SIZES)
"""Attribute of RoiAlign -> its default in opset 16."""
FIRST_OPSET = 16
"""Before it RoiAlign has no alignment of half a pixel, and another default."""
# TEXT is a function in ONNX's text syntax, with fields for `str.format`. What is written once for y and once
# for x, or for the low and high neighbour of each, is in the texts below it.
TEXT = """
<opset_import: ["": {opset}], domain: "{domain}">
{name} (maps, boxes, images) => (pooled) {{
    zero = Constant <value = float {{0}}> ()
    half = Constant <value = float {{0.5}}> ()
    one = Constant <value = float {{1}}> ()
    below = Constant <value = float {{-1}}> ()
    place1 = Constant <value = int64[1] {{1}}> ()
    place2 = Constant <value = int64[1] {{2}}> ()
    place3 = Constant <value = int64[1] {{3}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
    many = Constant <value = int64[2] {{2, 3}}> ()
    behind = Constant <value = int64[2] {{1, 2}}> ()
    size = Shape (maps)
    single_maps = Cast <to = 1> (maps)
    single_boxes = Cast <to = 1> (boxes)
    channels = Gather <axis = 0> (size, place1)
    rows = Gather <axis = 0> (size, place2)
    columns = Gather <axis = 0> (size, place3)
    moved = Transpose <perm = [0, 2, 3, 1]> (single_maps)
    of_cells = Concat <axis = 0> (last, channels)
    cells = Reshape (moved, of_cells)
    per_image = Mul (rows, columns)
    first = Mul (images, per_image)
    first_of_region = Unsqueeze (first, behind)
    scale = Constant <value = float {{{scale!r}}}> ()
    shift = Constant <value = float {{{shift}}}> ()
    scaled = Mul (single_boxes, scale)
    placed = Sub (scaled, shift)
{axes}
    samples = Mul (samples_y, samples_x)
    tries = Mul (tries_y, tries_x)
    always = Constant <value = bool {{1}}> ()
    count = Shape (images)
    height = Constant <value = int64[1] {{{height}}}> ()
    width = Constant <value = int64[1] {{{width}}}> ()
    shape = Concat <axis = 0> (count, height, width, channels)
    nothing = Expand (zero, shape)
    total = Loop (tries, always, nothing) <body = each (int64 step, bool go, float[r, h, w, c] before)
        => (bool going, float[r, h, w, c] after) {{
        going = Identity (go)
        turn_y = Div (step, tries_x)
        turn_x = Mod (step, tries_x)
{positions}
        flat_low = Mul (low_y, columns)
        flat_high = Mul (high_y, columns)
{corners}
        top = Add (value_low_low, value_low_high)
        both = Add (top, value_high_low)
        found = Add (both, value_high_high)
        after = Add (before, found)
    }}>
    at_least = Max (samples, one)
    divisor = Unsqueeze (at_least, many)
    mean = Div (total, divisor)
    in_order = Transpose <perm = [0, 3, 1, 2]> (mean)
    pooled = CastLike (in_order, maps)
}}
"""
AXIS = """
    begin_place_{a} = Constant <value = int64[1] {{{begin}}}> ()
    end_place_{a} = Constant <value = int64[1] {{{end}}}> ()
    begin_{a} = Gather <axis = 1> (placed, begin_place_{a})
    end_{a} = Gather <axis = 1> (placed, end_place_{a})
    given_{a} = Sub (end_{a}, begin_{a})
    long_{a} = {long} (given_{a}{least})
    parts_{a} = Constant <value = float {{{cells}}}> ()
    cell_{a} = Div (long_{a}, parts_{a})
{samples}
    spread_{a} = Max (samples_{a}, one)
    number_{a} = Constant <value = float[1, {cells}] {{{numbers}}}> ()
    from_begin_{a} = Mul (number_{a}, cell_{a})
    of_cell_{a} = Add (from_begin_{a}, begin_{a})
    most_{a} = ReduceMax <keepdims = 0> (spread_{a})
    tries_{a} = Cast <to = 7> (most_{a})
    side_{a} = Cast <to = 1> ({side})
    end_of_map_{a} = Sub (side_{a}, one)
    outside_{a} = Add (end_of_map_{a}, one)
"""
SAMPLES = """
    ratio_{a} = Constant <value = float {{{ratio}}}> ()
    regions_{a} = Shape (cell_{a})
    samples_{a} = Expand (ratio_{a}, regions_{a})"""
POSITION = """
        turn_float_{a} = Cast <to = 1> (turn_{a})
        middle_{a} = Add (turn_float_{a}, half)
        of_all_{a} = Mul (middle_{a}, cell_{a})
        within_{a} = Div (of_all_{a}, spread_{a})
        at_{a} = Add (of_cell_{a}, within_{a})
        taken_{a} = Less (turn_float_{a}, samples_{a})
        not_before_{a} = GreaterOrEqual (at_{a}, below)
        not_behind_{a} = LessOrEqual (at_{a}, outside_{a})
        inside_{a} = And (not_before_{a}, not_behind_{a})
        there_{a} = And (inside_{a}, taken_{a})
        counts_{a} = Cast <to = 1> (there_{a})
        from_zero_{a} = Max (at_{a}, zero)
        on_map_{a} = Min (from_zero_{a}, end_of_map_{a})
        low_float_{a} = Floor (on_map_{a})
        behind_{a} = Add (low_float_{a}, one)
        high_float_{a} = Min (behind_{a}, end_of_map_{a})
        share_high_{a} = Sub (on_map_{a}, low_float_{a})
        share_low_{a} = Sub (one, share_high_{a})
        low_{a} = Cast <to = 7> (low_float_{a})
        high_{a} = Cast <to = 7> (high_float_{a})
        weight_low_{a} = Mul (share_low_{a}, counts_{a})
        weight_high_{a} = Mul (share_high_{a}, counts_{a})
"""
CORNER = """
        row_{y}_{x} = Unsqueeze (flat_{y}, last)
        column_{y}_{x} = Unsqueeze ({x}_x, place1)
        own_{y}_{x} = Add (row_{y}_{x}, column_{y}_{x})
        index_{y}_{x} = Add (own_{y}_{x}, first_of_region)
        picked_{y}_{x} = Gather <axis = 0> (cells, index_{y}_{x})
        in_y_{y}_{x} = Unsqueeze (weight_{y}_y, many)
        in_x_between_{y}_{x} = Unsqueeze (weight_{x}_x, place1)
        in_x_{y}_{x} = Unsqueeze (in_x_between_{y}_{x}, last)
        weight_{y}_{x} = Mul (in_y_{y}_{x}, in_x_{y}_{x})
        value_{y}_{x} = Mul (picked_{y}_{x}, weight_{y}_{x})
"""


def replace_roi_align(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model in which supported RoiAlign nodes are replaced, and whether anything changed.

    - RoiAlign(X (B, C, H, W), boxes (R, 4), images (R,)), mode 'avg' -> a Loop over the samples of a
      cell, each four gathers of (R, h, w, C), weighted; what a region has no sample for has
      weight 0. Computed in float32.
    - Not fired: mode 'max', before opset 16, sub-graphs, local functions. They stay as they are.

    Any shape works, also a dynamic one. The result is the same up to rounding. In memory at a time:
    some tensors (R, h, w, C), and the map with its channels last. The model stays as it is, and is returned
    itself if nothing changed.
    """
    opset = opsets_of(model).get('', 0)

    def write(node: onnx.NodeProto, name: str) -> onnx.FunctionProto | None:
        return _function(name, _settings(node), opset) if is_replaced(node, opset) else None

    return replace_by_functions(model, DOMAIN, write)


def is_replaced(node: onnx.NodeProto, opset: int) -> bool:
    """Return whether `node`, of the main graph, is a RoiAlign that `replace_roi_align` replaces.

    `opset` is that of the graph, for ONNX's own domain.
    """
    return operator_name(node) == 'RoiAlign' and opset >= FIRST_OPSET and _settings(node)['mode'] == 'avg'


def _settings(node: onnx.NodeProto) -> dict[str, object]:
    settings = dict(DEFAULTS)
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name in settings:
            settings[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return settings


def _function(name: str, settings: Mapping[str, object], opset: int) -> onnx.FunctionProto:
    aligned, ratio = settings['coordinate_transformation_mode'] == 'half_pixel', settings['sampling_ratio']

    def axis_text(axis: str, begin: int, cells: int, side: str) -> str:
        samples = f'    samples_{axis} = Ceil (cell_{axis})'
        if ratio:
            samples = SAMPLES.format(a=axis, ratio=ratio)
        return AXIS.format(
            a=axis,
            begin=begin,
            end=begin + 2,
            cells=cells,
            side=side,
            long='Identity' if aligned else 'Max',
            least='' if aligned else ', one',
            samples=samples,
            numbers=', '.join(map(str, range(cells))),
        )

    height, width = settings['output_height'], settings['output_width']
    text = TEXT.format(
        opset=opset,
        domain=DOMAIN,
        name=name,
        height=height,
        width=width,
        scale=settings['spatial_scale'],
        shift=0.5 if aligned else 0,
        axes=axis_text('y', 1, height, 'rows') + axis_text('x', 0, width, 'columns'),
        positions=POSITION.format(a='y') + POSITION.format(a='x'),
        corners=''.join(CORNER.format(y=y, x=x) for y in ('low', 'high') for x in ('low', 'high')),
    )
    return onnx.parser.parse_function(text)
