"""Replace RoiAlign by gathers in a Loop, for engines that have no RoiAlign.

Glossary: B batch, C channels, H, W of the map, R regions, h, w cells of a region.
"""
# ruff: noqa: ANN001, ANN202, SIM108 - onnxscript reads the bodies

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.graphs.io.index import operator_name, opsets_of
from mmdeploy_ext.graphs.script import function_of, part, replace_by_functions

DOMAIN = 'mm2onnx.roi_align'
"""Domain of the functions that are inlined at the end."""
_SIZES = dict(output_height=1, output_width=1, sampling_ratio=0, spatial_scale=1.0)
DEFAULTS = dict(mode='avg', coordinate_transformation_mode='half_pixel', **_SIZES)
"""Attribute of RoiAlign -> its default in opset 16."""
FIRST_OPSET = 16
"""Before it RoiAlign has no alignment of half a pixel, and another default."""


def replace_roi_align(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model in which supported RoiAlign nodes are replaced, and whether anything changed.

    - RoiAlign(X (B, C, H, W), boxes (R, 4), images (R,)), mode 'avg' -> a Loop over the samples of a cell,
      each four gathers of (R, h, w, C), weighted, in float32.
    - Not fired: mode 'max', before opset 16, sub-graphs, local functions.

    Memory: some tensors (R, h, w, C), and the map with its channels last.
    """
    opset = opsets_of(model).get('', 0)

    def write(node: onnx.NodeProto, name: str) -> onnx.FunctionProto | None:
        return _function(name, _settings(node), opset) if is_replaced(node, opset) else None

    return replace_by_functions(model, DOMAIN, write)


def is_replaced(node: onnx.NodeProto, opset: int) -> bool:
    """Whether `replace_roi_align` replaces `node`."""
    return operator_name(node) == 'RoiAlign' and opset >= FIRST_OPSET and _settings(node)['mode'] == 'avg'


def _settings(node: onnx.NodeProto) -> dict[str, object]:
    settings = dict(DEFAULTS)
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name in settings:
            settings[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return settings


def _function(name: str, settings: Mapping[str, object], opset: int) -> onnx.FunctionProto:
    aligned = settings['coordinate_transformation_mode'] == 'half_pixel'
    height, width = settings['output_height'], settings['output_width']
    scale, shift = float(settings['spatial_scale']), 0.5 if aligned else 0.0
    ratio, is_adaptive = float(settings['sampling_ratio']), not settings['sampling_ratio']
    count_y, numbers_y = float(height), np.arange(height, dtype=np.float32)[None]
    count_x, numbers_x = float(width), np.arange(width, dtype=np.float32)[None]
    size_of_region = [height, width]

    def roi_align(op: Any) -> Callable[..., Any]:
        from onnxscript import graph

        @part(op)
        def axis(begin, end, count, numbers, side):
            if aligned:
                long = op.Identity(end - begin)
            else:
                long = op.Max(end - begin, 1.0)
            cell = long / count
            if is_adaptive:
                samples = op.Ceil(cell)
            else:
                samples = op.Expand(ratio, op.Shape(cell))
            most = op.Cast(op.ReduceMax(op.Max(samples, 1.0), keepdims=0), to=TensorProto.INT64)
            return cell, numbers * cell + begin, samples, most, op.Cast(side, to=TensorProto.FLOAT) - 1.0

        @part(op)
        def position(turn, cell, begins, samples, end_of_map):
            step = op.Cast(turn, to=TensorProto.FLOAT)
            at = begins + (step + 0.5) * cell / op.Max(samples, 1.0)
            inside = op.And(at >= -1.0, at <= end_of_map + 1.0)
            counts = op.Cast(op.And(inside, step < samples), to=TensorProto.FLOAT)
            on_map = op.Min(op.Max(at, 0.0), end_of_map)
            low = op.Floor(on_map)
            high = op.Min(low + 1.0, end_of_map)
            share = on_map - low
            low_index = op.Cast(low, to=TensorProto.INT64)
            high_index = op.Cast(high, to=TensorProto.INT64)
            return low_index, high_index, (1.0 - share) * counts, share * counts

        @part(op)
        def corner(cells, first, row, column, row_weight, column_weight):
            places = op.Unsqueeze(row, [-1]) + op.Unsqueeze(column, [1]) + first
            column_weights = op.Unsqueeze(op.Unsqueeze(column_weight, [1]), [-1])
            return op.Gather(cells, places, axis=0) * op.Unsqueeze(row_weight, [2, 3]) * column_weights

        def body(maps, boxes, images):
            size = op.Shape(maps)
            channels = op.Gather(size, [1], axis=0)
            rows = op.Gather(size, [2], axis=0)
            columns = op.Gather(size, [3], axis=0)
            moved = op.Transpose(op.Cast(maps, to=TensorProto.FLOAT), perm=[0, 2, 3, 1])
            cells = op.Reshape(moved, op.Concat([-1], channels, axis=0))
            first = op.Unsqueeze(images * (rows * columns), [1, 2])
            placed = op.Cast(boxes, to=TensorProto.FLOAT) * scale - shift
            cell_y, begins_y, samples_y, tries_y, end_y = axis(
                op.Gather(placed, [1], axis=1),
                op.Gather(placed, [3], axis=1),
                count_y,
                numbers_y,
                rows,
            )
            cell_x, begins_x, samples_x, tries_x, end_x = axis(
                op.Gather(placed, [0], axis=1),
                op.Gather(placed, [2], axis=1),
                count_x,
                numbers_x,
                columns,
            )
            shape = op.Concat(op.Shape(images), size_of_region, channels, axis=0)

            @graph()
            def sample(step, go, total):
                low_y, high_y, weight_low_y, weight_high_y = position(
                    step / tries_x, cell_y, begins_y, samples_y, end_y
                )
                low_x, high_x, weight_low_x, weight_high_x = position(
                    op.Mod(step, tries_x), cell_x, begins_x, samples_x, end_x
                )
                above = low_y * columns
                below = high_y * columns
                found = corner(cells, first, above, low_x, weight_low_y, weight_low_x)
                found = found + corner(cells, first, above, high_x, weight_low_y, weight_high_x)
                found = found + corner(cells, first, below, low_x, weight_high_y, weight_low_x)
                found = found + corner(cells, first, below, high_x, weight_high_y, weight_high_x)
                return op.Identity(go), total + found

            total = op.Loop(tries_y * tries_x, True, op.Expand(0.0, shape), body=sample)
            divisor = op.Unsqueeze(op.Max(samples_y * samples_x, 1.0), [2, 3])
            pooled = op.CastLike(op.Transpose(total / divisor, perm=[0, 3, 1, 2]), maps)
            return pooled

        return body

    return function_of(roi_align, DOMAIN, name, opset)
