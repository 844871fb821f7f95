"""Intersection over union of pairs of rotated boxes: mmcv's CPU kernel, operation by operation, in float32.

Source: mmcv 1.7.2 `ops/csrc/common/box_iou_rotated_utils.hpp`; the sort is the insertion of libstdc++'s
`std::sort`, which takes another way for more than 16 elements.

Glossary: P pairs of boxes, 24 points of a pair.
"""
# ruff: noqa: ANN001, ANN202, RUF005 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from mmdeploy_ext.graphs.script import part
from mmdeploy_ext.upstream.operators.operator import Operator, register

POINTS = 24
"""Points of a pair: 16 crossings of edges, and the 4 corners of each box."""
SAME_ANGLE, SAME_POINT, NO_AREA = 1e-6, 1e-8, 1e-14
"""Largest cross product of parallels; largest squared distance of equal points; area of no box."""


# --- the convex hull ------------------------------------------------------------------------------------


def _cross(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return x1 * y2 - x2 * y1


def _convex_hull(x: Tensor, y: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from mmdeploy_ext.runtime import rotated_loops

    points = torch.stack([x, y], 2).cpu().numpy()
    sizes = rotated_loops.convex_hulls(points, count[:, 0].cpu().numpy())
    hulls = torch.from_numpy(points).to(x)
    return hulls[..., 0], hulls[..., 1], torch.from_numpy(sizes).to(count)[:, None]


def _convex_hull_body(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    @part(op)
    def any_of(rows):
        numbers = op.Concat(op.Cast(rows, to=TensorProto.INT64), [[0]], axis=0)
        return op.ReduceSum(numbers, keepdims=0) > 0

    def body(x, y, count):
        same_angle = op.Constant(value_float=SAME_ANGLE)
        last = op.Constant(value_int=POINTS - 1)
        columns = op.Range(0, POINTS, 1)
        counted = columns < count
        inner = columns >= 1
        before = op.Max(columns - 1, 0)

        @graph()
        def insert(turn, go, old_x, old_y):
            row = turn + 2
            point_x = op.Gather(old_x, turn + [2], axis=1)
            point_y = op.Gather(old_y, turn + [2], axis=1)
            cross = point_x * old_y - old_x * point_y
            tie = op.Abs(cross) <= same_angle
            nearer = point_x * point_x + point_y * point_y < old_x * old_x + old_y * old_y
            precedes = op.Or(op.And(tie, nearer), op.And(op.Not(tie), cross > 0.0))
            stays = op.And(op.Not(precedes), op.And(inner, columns < row))
            ranks = op.Cast(op.Where(stays, columns, -1), to=TensorProto.FLOAT)
            after_last = op.ArgMax(ranks, axis=1, keepdims=1) + 1
            wanted = op.Where(op.Gather(precedes, [1], axis=1), 1, after_last)
            place = op.Where(row < count, wanted, row)
            moves = op.And(columns > place, columns <= row)
            here = columns == place
            moved_x = op.Where(moves, op.Gather(old_x, before, axis=1), old_x)
            moved_y = op.Where(moves, op.Gather(old_y, before, axis=1), old_y)
            go_on = any_of(row + 1 < count)
            return go_on, op.Where(here, point_x, moved_x), op.Where(here, point_y, moved_y)

        sorted_x, sorted_y = op.Loop(POINTS - 2, True, x, y, body=insert)
        long = sorted_x * sorted_x + sorted_y * sorted_y > SAME_POINT
        far = op.And(long, op.And(inner, counted))
        second = op.ArgMax(op.Cast(far, to=TensorProto.FLOAT), axis=1, keepdims=1)
        has_second = op.GatherElements(far, second, axis=1)
        size_of_line = op.Where(has_second, 2, 1)
        begin = op.Where(has_second, second + 1, count)
        is_first = columns == 1
        line_x = op.Where(is_first, op.GatherElements(sorted_x, second, axis=1), sorted_x)
        line_y = op.Where(is_first, op.GatherElements(sorted_y, second, axis=1), sorted_y)

        @graph()
        def scan(step, going, scan_x, scan_y, scan_size, scan_next):
            is_open = scan_next < count
            place1 = op.Max(scan_size - 2, 0)
            place2 = op.Max(scan_size - 1, 0)
            place3 = op.Min(scan_next, last)
            x1 = op.GatherElements(scan_x, place1, axis=1)
            y1 = op.GatherElements(scan_y, place1, axis=1)
            x3 = op.GatherElements(scan_x, place3, axis=1)
            y3 = op.GatherElements(scan_y, place3, axis=1)
            x21 = op.GatherElements(scan_x, place2, axis=1) - x1
            y21 = op.GatherElements(scan_y, place2, axis=1) - y1
            turns = (x3 - x1) * y21 - x21 * (y3 - y1)
            drops = op.And(op.And(is_open, scan_size > 1), turns >= 0.0)
            adds = op.And(is_open, op.Not(drops))
            put = op.And(adds, columns == scan_size)
            added = op.Cast(adds, to=TensorProto.INT64)
            next_size = scan_size + added - op.Cast(drops, to=TensorProto.INT64)
            next_next = scan_next + added
            goes_on = any_of(next_next < count)
            next_x = op.Where(put, x3, scan_x)
            next_y = op.Where(put, y3, scan_y)
            return goes_on, next_x, next_y, next_size, next_next

        hull_x, hull_y, size, _scanned = op.Loop(None, True, line_x, line_y, size_of_line, begin, body=scan)
        return hull_x, hull_y, size

    return body


CONVEX_HULL = register(
    Operator(
        'ConvexHull',
        _convex_hull,
        inputs=dict(x='P 24', y='P 24', count='P 1'),
        outputs=('hull_x', 'hull_y', 'size'),
        example=lambda: (
            torch.tensor([[0.0, 1, 0, 1] + [0.0] * 20]),
            torch.tensor([[0.0, 0, 1, 1] + [0.0] * 20]),
            torch.tensor([[4]]),
        ),
        shapes=lambda x, y, count: (torch.empty_like(x), torch.empty_like(y), torch.empty_like(count)),
        body=_convex_hull_body,
    )
)
"""(x, y, count) -> hull_x, hull_y (P, 24) float32 of the convex hull, and their number (P, 1) int64.

x, y (P, 24) float32 are relative to the first point, the lowest in y, then x. `count` (P, 1) int64 points of
each row are valid.
"""


# --- the overlap of two boxes ---------------------------------------------------------------------------


def _eager(boxes: Tensor, others: Tensor) -> Tensor:
    from mmcv.ops import box_iou_rotated

    return box_iou_rotated(boxes.contiguous(), others.contiguous(), aligned=True)


def _traceable(boxes: Tensor, others: Tensor) -> Tensor:
    areas, other_areas = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    middle = (boxes[:, :2] + others[:, :2]) / 2
    overlap = _overlap(_corners(boxes, middle), _corners(others, middle))
    has_area = (areas > NO_AREA) & (other_areas > NO_AREA)
    union = torch.where(has_area, areas + other_areas - overlap, torch.ones_like(overlap))
    return torch.where(has_area, overlap / union, torch.zeros_like(overlap))


def _corners(boxes: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    (x, y), (width, height) = (boxes[:, :2] - middle).unbind(1), boxes[:, 2:4].unbind(1)
    angle = boxes[:, 4].to(torch.float64)
    cos, sin = (values.to(torch.float32) * 0.5 for values in (angle.cos(), angle.sin()))
    x1, y1 = x - sin * height - cos * width, y + cos * height - sin * width
    x2, y2 = x + sin * height - cos * width, y - cos * height - sin * width
    xs, ys = [x1, x2, 2 * x - x1, 2 * x - x2], [y1, y2, 2 * y - y1, 2 * y - y2]
    return torch.stack(xs, 1), torch.stack(ys, 1)


def _overlap(corners: tuple[Tensor, Tensor], other_corners: tuple[Tensor, Tensor]) -> Tensor:
    edges, other_edges = (
        tuple(values[:, [1, 2, 3, 0]] - values for values in points) for points in (corners, other_corners)
    )
    x, y, crosses = _crossings(corners, edges, other_corners, other_edges)
    points_x = torch.cat([x, corners[0], other_corners[0]], 1)
    points_y = torch.cat([y, corners[1], other_corners[1]], 1)
    valid = torch.cat(
        [crosses, _inside(corners, other_corners, other_edges), _inside(other_corners, corners, edges)], 1
    )
    count = valid.sum(1, keepdim=True)
    places = torch.where(valid, valid.to(torch.int64).cumsum(1) - 1, POINTS)
    spare = torch.zeros_like(points_x[:, :1]).expand(-1, POINTS + 1)
    x, y = (spare.scatter(1, places, points)[:, :POINTS] for points in (points_x, points_y))
    hull_x, hull_y, size = CONVEX_HULL(*_around_first(x, y, count), count)
    triangles = _cross(hull_x[:, 1:-1], hull_y[:, 1:-1], hull_x[:, 2:], hull_y[:, 2:]).abs()
    columns = torch.arange(POINTS - 2, device=x.device)
    triangles = torch.where(columns < size - 2, triangles, torch.zeros_like(triangles))
    return torch.where(count[:, 0] > 2, triangles.cumsum(1)[:, -1] / 2, torch.zeros_like(x[:, 0]))


def _crossings(
    corners: tuple[Tensor, Tensor],
    edges: tuple[Tensor, Tensor],
    other_corners: tuple[Tensor, Tensor],
    other_edges: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    i, j = [edge for edge in range(4) for _ in range(4)], [0, 1, 2, 3] * 4
    (x, y), (edge_x, edge_y) = ([values[:, i] for values in pair] for pair in (corners, edges))
    other_x, other_y = (values[:, j] for values in other_edges)
    gap_x, gap_y = other_corners[0][:, j] - x, other_corners[1][:, j] - y
    determinant = _cross(other_x, other_y, edge_x, edge_y)
    parallel = determinant.abs() <= NO_AREA
    divisor = torch.where(parallel, torch.ones_like(determinant), determinant)
    share = _cross(other_x, other_y, gap_x, gap_y) / divisor
    other_share = _cross(edge_x, edge_y, gap_x, gap_y) / divisor
    crosses = ~parallel & (share >= 0) & (share <= 1) & (other_share >= 0) & (other_share <= 1)
    return x + edge_x * share, y + edge_y * share, crosses


def _inside(
    points: tuple[Tensor, Tensor], corners: tuple[Tensor, Tensor], edges: tuple[Tensor, Tensor]
) -> Tensor:
    x, y = points[0] - corners[0][:, :1], points[1] - corners[1][:, :1]
    along_x, along_y = edges[0][:, :1], edges[1][:, :1]
    across_x, across_y = edges[0][:, 3:], edges[1][:, 3:]
    along = x * along_x + y * along_y
    across = -(x * across_x + y * across_y)
    length, other_length = along_x * along_x + along_y * along_y, across_x * across_x + across_y * across_y
    return (along >= 0) & (across >= 0) & (along <= length) & (across <= other_length)


def _around_first(x: Tensor, y: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    columns = torch.arange(POINTS, device=x.device)
    valid = columns < count
    far = torch.full_like(x, 1e30)
    lowest = torch.where(valid, y, far).amin(1, keepdim=True)
    low_x = torch.where(valid & (y == lowest), x, far)
    first = (low_x == low_x.amin(1, keepdim=True)).to(torch.float32).argmax(1, keepdim=True)
    around = []
    for values in (x, y):
        offset = torch.where(valid, values - values.gather(1, first), torch.zeros_like(values))
        offset = torch.where(columns == first, offset[:, :1], offset)
        around.append(torch.where(columns == 0, torch.zeros_like(offset), offset))
    return around[0], around[1]


PAIR_IOU = register(
    Operator(
        'RotatedPairIou',
        _eager,
        inputs=dict(boxes='P 5', others='P 5'),
        outputs=('iou',),
        example=lambda: (
            torch.tensor([[0.0, 0, 4, 2, 0.3], [9, 9, 2, 2, 0]]),
            torch.tensor([[0.5, 0, 4, 2, 0.2], [9, 9, 2, 2, 1]]),
        ),
        traceable=_traceable,
        shapes=lambda boxes, others: torch.empty_like(boxes[:, 0]),
    )
)
"""(boxes, others) -> (P,) float32: mmcv's `box_iou_rotated(..., aligned=True)` on the CPU.

Boxes (P, 5) float32: centre x, y, width, height, angle in radians from x towards y (mmcv's `clockwise=True`).
"""
