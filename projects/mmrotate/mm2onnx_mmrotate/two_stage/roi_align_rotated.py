"""Rotated regions pooled from maps of a pyramid: mmcv's RoIAlignRotated as gathers, which every engine has.

The cells of all levels are the rows of one table, so that a region of any level is a set of row numbers: no
level is looked at alone, and every shape is that of the regions. Samples of a cell are added one after the
other in a Loop, in the order and with the rounding of mmcv's kernel: measured, equal to the bit in ONNX
Runtime.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/roi_align_rotated.cpp`.

Glossary: B batch, C channels, H, W size of a level's map, R regions, h, w size of a pooled region, P = h * w
cells, T rows of the table.
"""

from collections.abc import Sequence

import torch
from mmcv.ops import RoIAlignRotated
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register

GEOMETRY = (
    'centre_x',
    'centre_y',
    'cos',
    'sin',
    'start_x',
    'start_y',
    'side_x',
    'side_y',
    'samples_x',
    'samples_y',
)
"""Columns of `geometry`, in cells of the region's map, whose centres are whole numbers: centre, rotation
(counter-clockwise in a picture whose y points down), first corner relative to the centre before the rotation,
sides of a pooled cell, and how many samples such a cell has across and down."""
PLACES = ('begin', 'map_height', 'map_width')
"""Columns of `places`: the row of the table at which the region's map begins, and the size of the map."""


def _eager(table: Tensor, geometry: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    from mm2onnx_mmrotate.two_stage import rotated_region_loops

    arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in (table, geometry, places))
    return torch.from_numpy(rotated_region_loops.pooled_regions(*arrays, height, width)).to(table)


def _corner(number: int, row: str, column: str, weight: tuple[str, str]) -> str:
    """Return the text that reads the cells of one corner of all samples, times their weights."""
    return f"""
                    index_rows{number} = Mul ({row}, map_width)
                    index_cells{number} = Add (index_rows{number}, {column})
                    places{number} = Cast <to = 7> (index_cells{number})
                    shifted{number} = Add (places{number}, begin)
                    rows{number} = Where (used, shifted{number}, zero)
                    full_weights{number} = Mul ({weight[0]}, {weight[1]})
                    flat_weights{number} = Where (used, full_weights{number}, flat)
                    weights{number} = Unsqueeze (flat_weights{number}, last)
                    cells{number} = Gather <axis = 0> (table, rows{number})
                    values{number} = Mul (weights{number}, cells{number})"""


def _axis(name: str, size: str) -> str:
    """Return the text of the cells around a place: {name}0, {name}1, {name}_part and {name}_rest."""
    return f"""
                    {name}_clamped = Max ({name}, flat)
                    {name}_end = Sub ({size}, whole)
                    {name}_floor = Floor ({name}_clamped)
                    {name}_at_end = GreaterOrEqual ({name}_floor, {name}_end)
                    {name}0 = Where ({name}_at_end, {name}_end, {name}_floor)
                    {name}_place = Where ({name}_at_end, {name}_end, {name}_clamped)
                    {name}_next = Add ({name}0, whole)
                    {name}1 = Where ({name}_at_end, {name}_end, {name}_next)
                    {name}_part = Sub ({name}_place, {name}0)
                    {name}_rest = Sub (whole, {name}_part)"""


def _columns(source: str, names: Sequence[str]) -> str:
    return ''.join(
        f"""
            {name}_column = Constant <value = int64[1] {{{index}}}> ()
            {name} = Gather <axis = 1> ({source}, {name}_column)"""
        for index, name in enumerate(names)
    )


ROTATED_REGIONS = register(
    Operator(
        'RotatedRegions',
        _eager,
        inputs=dict(table='T C', geometry='R 10', places='R 3'),
        outputs=('pooled',),
        example=lambda: (
            torch.rand(16, 3),
            torch.tensor([[2.0, 2, 1, 0, -1, -1, 1, 1, 2, 2]]),
            torch.tensor([[0, 4, 4]]),
        ),
        shapes=lambda table, geometry, places, height, width: table.new_empty(
            (geometry.shape[0], height * width, table.shape[1])
        ),
        body=f"""
        RotatedRegions <height, width> (table, geometry, places) => (pooled) {{
            zero = Constant <value = int64 {{0}}> ()
            unit = Constant <value = int64 {{1}}> ()
            nothing = Constant <value = float[1] {{0}}> ()
            last = Constant <value = int64[1] {{-1}}> ()
            flat = Constant <value = float {{0}}> ()
            whole = Constant <value = float {{1}}> ()
            half = Constant <value = float {{0.5}}> ()
            minus = Constant <value = float {{-1}}> ()
            h = Constant <value_int: int = @height> ()
            w = Constant <value_int: int = @width> (){_columns('geometry', GEOMETRY)}
            {_columns('places', ('begin', 'whole_height', 'whole_width'))}
            map_height = Cast <to = 1> (whole_height)
            map_width = Cast <to = 1> (whole_width)
            count_cells = Mul (h, w)
            cells = Range (zero, count_cells, unit)
            cell_rows = Div (cells, w)
            cell_columns = Mod (cells, w)
            cell_y = Cast <to = 1> (cell_rows)
            cell_x = Cast <to = 1> (cell_columns)
            offset_y = Mul (cell_y, side_y)
            offset_x = Mul (cell_x, side_x)
            base_y = Add (start_y, offset_y)
            base_x = Add (start_x, offset_x)
            all_y = Reshape (samples_y, last)
            all_x = Reshape (samples_x, last)
            any_y = Concat <axis = 0> (all_y, nothing)
            any_x = Concat <axis = 0> (all_x, nothing)
            largest_y = ReduceMax <keepdims = 0> (any_y)
            largest_x = ReduceMax <keepdims = 0> (any_x)
            all_turns = Mul (largest_y, largest_x)
            turns = Cast <to = 7> (all_turns)
            most_x = Cast <to = 7> (largest_x)
            regions = Shape <start = 0, end = 1> (places)
            channels = Shape <start = 1, end = 2> (table)
            cells_size = Reshape (count_cells, last)
            size = Concat <axis = 0> (regions, cells_size, channels)
            begin_sum = ConstantOfShape (size)
            total = Loop (turns, , begin_sum) <body = sample
                (int64 number, bool go, float[R,P,C] sum) => (bool go_on, float[R,P,C] new_sum) {{
                    go_on = Identity (go)
                    step_y = Div (number, most_x)
                    step_x = Mod (number, most_x)
                    step_y_number = Cast <to = 1> (step_y)
                    step_x_number = Cast <to = 1> (step_x)
                    has_y = Less (step_y_number, samples_y)
                    has_x = Less (step_x_number, samples_x)
                    has_sample = And (has_y, has_x)
                    middle_y = Add (step_y_number, half)
                    middle_x = Add (step_x_number, half)
                    scaled_y = Mul (middle_y, side_y)
                    scaled_x = Mul (middle_x, side_x)
                    shift_y = Div (scaled_y, samples_y)
                    shift_x = Div (scaled_x, samples_x)
                    yy = Add (base_y, shift_y)
                    xx = Add (base_x, shift_x)
                    yy_cos = Mul (yy, cos)
                    xx_sin = Mul (xx, sin)
                    yy_sin = Mul (yy, sin)
                    xx_cos = Mul (xx, cos)
                    turned_y = Sub (yy_cos, xx_sin)
                    turned_x = Add (yy_sin, xx_cos)
                    y = Add (turned_y, centre_y)
                    x = Add (turned_x, centre_x)
                    above = GreaterOrEqual (y, minus)
                    below = LessOrEqual (y, map_height)
                    behind = GreaterOrEqual (x, minus)
                    before = LessOrEqual (x, map_width)
                    in_rows = And (above, below)
                    in_columns = And (behind, before)
                    inside = And (in_rows, in_columns)
                    used = And (inside, has_sample){_axis('y', 'map_height')}{_axis('x', 'map_width')}
                    {_corner(1, 'y0', 'x0', ('y_rest', 'x_rest'))}
                    {_corner(2, 'y0', 'x1', ('y_rest', 'x_part'))}
                    {_corner(3, 'y1', 'x0', ('y_part', 'x_rest'))}
                    {_corner(4, 'y1', 'x1', ('y_part', 'x_part'))}
                    values12 = Add (values1, values2)
                    values123 = Add (values12, values3)
                    values = Add (values123, values4)
                    new_sum = Add (sum, values)
                }}>
            sample_counts = Mul (samples_y, samples_x)
            divisors = Max (sample_counts, whole)
            divisor = Unsqueeze (divisors, last)
            pooled = Div (total, divisor)
        }}""",
    )
)
"""(table, geometry, places, height, width) -> pooled (R, P, C); for the columns see `GEOMETRY`, `PLACES`."""


def pool_rotated(
    maps: Sequence[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, layers: Sequence[nn.Module]
) -> Tensor:
    """Return the features (R, C, h, w) of rotated regions, each of its own level.

    Args:
        maps: (B, C, H, W) float32 of each level.
        boxes: (R, 5) float32 x, y of the centre, width, height in pixels of the network input, angle in
            radians, in the direction that `clockwise` of the layers states.
        images: (R,) int64 index into the batch.
        levels: (R,) int64 index of `maps`.
        layers: mmcv's layer of each level; `check_rotated_layer` has passed them. They differ in their scale
            alone: the other settings are those of the first.
    """
    layer = layers[0]
    height, width = layer.output_size
    table = torch.cat([level_map.permute(0, 2, 3, 1).flatten(0, 2) for level_map in maps])
    sizes = [level_map.shape[2:] for level_map in maps]
    begins, heights, widths, scales, begin = [], [], [], [], torch.zeros_like(levels[:0].sum())
    for (map_height, map_width), level_layer in zip(sizes, layers, strict=True):
        heights.append(begin.new_zeros(()) + map_height)
        widths.append(begin.new_zeros(()) + map_width)
        scales.append(float(level_layer.spatial_scale))
        begins.append(begin)
        begin = begin + maps[0].shape[0] * heights[-1] * widths[-1]
    begins, heights, widths = (torch.stack(values)[levels] for values in (begins, heights, widths))
    scale = boxes.new_tensor(scales)[levels][:, None]
    centres = boxes[:, :2] * scale - (0.5 if layer.aligned else 0.0)
    sides = boxes[:, 2:4] * scale
    if not layer.aligned:
        sides = sides.clamp(min=1.0)
    cells = boxes.new_tensor([width, height])
    cell_sides = sides / cells
    angle = (-boxes[:, 4:] if layer.clockwise else boxes[:, 4:]).to(torch.float64)
    turn = torch.cat([angle.cos(), angle.sin()], 1).to(boxes)
    counts = torch.full_like(cell_sides, layer.sampling_ratio)
    if layer.sampling_ratio <= 0:
        counts = cell_sides.ceil()
    geometry = torch.cat([centres, turn, -sides / 2, cell_sides, counts], 1)
    begins = begins + images * heights * widths
    places = torch.stack([begins, heights, widths], 1)
    pooled = ROTATED_REGIONS(table, geometry, places, height, width)
    return pooled.transpose(1, 2).unflatten(2, (height, width))


def check_rotated_layer(layer: nn.Module) -> None:
    """Refuse (ConfigError) a layer that `pool_rotated` does not compute."""
    if not isinstance(layer, RoIAlignRotated):
        raise ConfigError(
            f'roi_layer.type={type(layer).__name__}; rotated regions export with RoIAlignRotated'
        )


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('RoIAlignRotated', 'Shape with a range'),
        opset=15,
        types=('RoIAlignRotated',),
    )
)
