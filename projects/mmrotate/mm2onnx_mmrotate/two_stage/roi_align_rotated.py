"""Rotated regions pooled from maps of a pyramid: mmcv's RoIAlignRotated as gathers, which every engine has.

The cells of all levels are the rows of one table, so that a region of any level is a set of row numbers: no
level is looked at alone, and every shape is that of the regions. Samples of a cell are added one after the
other in a Loop, in the order and with the rounding of mmcv's kernel: measured, equal to the bit in ONNX
Runtime.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/roi_align_rotated.cpp`.

Glossary: B batch, C channels, H, W size of a level's map, R regions, h, w size of a pooled region, P = h * w
cells, T rows of the table.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.ops import RoIAlignRotated
from onnx import TensorProto
from torch import Tensor, nn

from mmdeploy_ext.families.images import ConfigError
from mmdeploy_ext.upstream.operators.operator import (
    LIBRARY_OPERATORS,
    LibraryOperator,
    Operator,
    part,
    register,
)

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
    from mmdeploy_ext.upstream.compat import operator_loops

    arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in (table, geometry, places))
    return torch.from_numpy(operator_loops.pooled_regions(*arrays, height, width, False)).to(table)


def _rotated_regions(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    @part(op)
    def axis(place, size):
        """Return the cells before and behind places on an axis, and the shares of both."""
        clamped = op.Max(place, 0.0)
        end = size - 1.0
        low = op.Floor(clamped)
        at_end = low >= end
        cell = op.Where(at_end, end, low)
        behind = op.Where(at_end, end, cell + 1.0)
        share = op.Where(at_end, end, clamped) - cell
        return cell, behind, 1.0 - share, share

    @part(op)
    def corner(table, begin, map_width, used, row, column, row_weight, column_weight):
        """Return the cells of one corner of all samples, times their weights."""
        places = op.Cast(row * map_width + column, to=TensorProto.INT64) + begin
        weights = op.Unsqueeze(op.Where(used, row_weight * column_weight, 0.0), [-1])
        return weights * op.Gather(table, op.Where(used, places, 0), axis=0)

    def body(table, geometry, places, height: int, width: int):
        h = op.Constant(value_int=height)
        w = op.Constant(value_int=width)
        centre_x = op.Gather(geometry, [0], axis=1)
        centre_y = op.Gather(geometry, [1], axis=1)
        cos = op.Gather(geometry, [2], axis=1)
        sin = op.Gather(geometry, [3], axis=1)
        start_x = op.Gather(geometry, [4], axis=1)
        start_y = op.Gather(geometry, [5], axis=1)
        side_x = op.Gather(geometry, [6], axis=1)
        side_y = op.Gather(geometry, [7], axis=1)
        samples_x = op.Gather(geometry, [8], axis=1)
        samples_y = op.Gather(geometry, [9], axis=1)
        begin = op.Gather(places, [0], axis=1)
        map_height = op.Cast(op.Gather(places, [1], axis=1), to=TensorProto.FLOAT)
        map_width = op.Cast(op.Gather(places, [2], axis=1), to=TensorProto.FLOAT)
        count = h * w
        cells = op.Range(0, count, 1)
        base_y = start_y + op.Cast(cells / w, to=TensorProto.FLOAT) * side_y
        base_x = start_x + op.Cast(op.Mod(cells, w), to=TensorProto.FLOAT) * side_x
        most_y = op.ReduceMax(op.Concat(op.Reshape(samples_y, [-1]), [0.0], axis=0), keepdims=0)
        most_x = op.ReduceMax(op.Concat(op.Reshape(samples_x, [-1]), [0.0], axis=0), keepdims=0)
        turns = op.Cast(most_y * most_x, to=TensorProto.INT64)
        turns_x = op.Cast(most_x, to=TensorProto.INT64)
        regions = op.Shape(places, start=0, end=1)
        channels = op.Shape(table, start=1, end=2)
        size = op.Concat(regions, op.Reshape(count, [-1]), channels, axis=0)

        @graph()
        def sample(number, go, total):
            step_y = op.Cast(number / turns_x, to=TensorProto.FLOAT)
            step_x = op.Cast(op.Mod(number, turns_x), to=TensorProto.FLOAT)
            has_sample = op.And(step_y < samples_y, step_x < samples_x)
            yy = base_y + (step_y + 0.5) * side_y / samples_y
            xx = base_x + (step_x + 0.5) * side_x / samples_x
            y = yy * cos - xx * sin + centre_y
            x = yy * sin + xx * cos + centre_x
            in_rows = op.And(y >= -1.0, y <= map_height)
            in_columns = op.And(x >= -1.0, x <= map_width)
            used = op.And(op.And(in_rows, in_columns), has_sample)
            y0, y1, y_rest, y_part = axis(y, map_height)
            x0, x1, x_rest, x_part = axis(x, map_width)
            value1 = corner(table, begin, map_width, used, y0, x0, y_rest, x_rest)
            value2 = corner(table, begin, map_width, used, y0, x1, y_rest, x_part)
            value3 = corner(table, begin, map_width, used, y1, x0, y_part, x_rest)
            value4 = corner(table, begin, map_width, used, y1, x1, y_part, x_part)
            return op.Identity(go), total + (value1 + value2 + value3 + value4)

        total = op.Loop(turns, None, op.ConstantOfShape(size), body=sample)
        pooled = total / op.Unsqueeze(op.Max(samples_y * samples_x, 1.0), [-1])
        return pooled

    return body


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
        body=_rotated_regions,
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
        raise ConfigError(f'roi_layer.type={type(layer).__name__}; rotated regions need RoIAlignRotated')


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('RoIAlignRotated', 'Shape with a range'),
        opset=15,
        types=('RoIAlignRotated',),
    )
)
