"""Intersection over union of pairs of rotated boxes: mmcv's CPU kernel, operation by operation, in float32.

The overlap of two rectangles is the convex hull of at most 24 points: where their edges cross, and corners of
one that lie in the other. mmcv's kernel decides all of this by comparisons without a margin, so that rounding
decides about boxes that have edges in common: of one in ten pairs of boxes that differ by 1e-4 pixels it
computes an IoU of 0, or one above 1 (up to 3). A graph that suppresses the same boxes has to round as the
kernel does: each product and each difference here is one of the kernel's, in its order, and points are sorted
as the C++ library sorts them with the kernel's comparison.

Source: mmcv 1.7.2 `ops/csrc/common/box_iou_rotated_utils.hpp`; the sort is the insertion of libstdc++'s
`std::sort`, which takes another way for more than 16 elements. A pair has more than 17 points only if boxes
lie on each other up to the last bit of the angle: of 800,000 such pairs 108 had 18 or 19, and 2 of these
another IoU than mmcv's.

Glossary: P pairs of boxes, 24 points of a pair.
"""

import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.operator import Operator, register

POINTS = 24
"""Points of a pair: 16 crossings of edges, and the 4 corners of each box."""
SAME_ANGLE, SAME_POINT, NO_AREA = 1e-6, 1e-8, 1e-14
"""Largest cross product of two points that count as in one direction; largest squared distance of a point
that counts as the first one; largest area of a box that counts as empty, and largest cross product of edges
that count as parallel."""


# --- the convex hull ------------------------------------------------------------------------------------


def _cross(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return x1 * y2 - x2 * y1


def _convex_hull(x: Tensor, y: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from mmdeploy_ext.runtime import rotated_loops

    points = torch.stack([x, y], 2).cpu().numpy()
    sizes = rotated_loops.convex_hulls(points, count[:, 0].cpu().numpy())
    hulls = torch.from_numpy(points).to(x)
    return hulls[..., 0], hulls[..., 1], torch.from_numpy(sizes).to(count)[:, None]


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
        body=f"""
        ConvexHull (x, y, count) => (hull_x, hull_y, size) {{
            yes = Constant <value = bool {{1}}> ()
            zero = Constant <value = int64 {{0}}> ()
            first = Constant <value = int64[1] {{1}}> ()
            unit = Constant <value = int64 {{1}}> ()
            two = Constant <value = int64 {{2}}> ()
            two_place = Constant <value = int64[1] {{2}}> ()
            none = Constant <value = int64 {{-1}}> ()
            width = Constant <value = int64 {{{POINTS}}}> ()
            end = Constant <value = int64 {{{POINTS - 1}}}> ()
            no_pair = Constant <value = int64[1,1] {{0}}> ()
            flat = Constant <value = float {{0}}> ()
            same_angle = Constant <value = float {{{SAME_ANGLE}}}> ()
            same_point = Constant <value = float {{{SAME_POINT}}}> ()
            columns = Range (zero, width, unit)
            counted = Less (columns, count)
            inner = GreaterOrEqual (columns, unit)
            turned = Sub (columns, unit)
            before = Max (turned, zero)
            most = Sub (width, two)
            sorted_x, sorted_y = Loop (most, yes, x, y) <body = insert
                (int64 turn, bool go, float[P,{POINTS}] old_x, float[P,{POINTS}] old_y)
                => (bool go_on, float[P,{POINTS}] new_x, float[P,{POINTS}] new_y) {{
                    row = Add (turn, two)
                    row_place = Add (turn, two_place)
                    point_x = Gather <axis = 1> (old_x, row_place)
                    point_y = Gather <axis = 1> (old_y, row_place)
                    forth = Mul (point_x, old_y)
                    back = Mul (old_x, point_y)
                    cross = Sub (forth, back)
                    size_of_cross = Abs (cross)
                    tie = LessOrEqual (size_of_cross, same_angle)
                    point_xx = Mul (point_x, point_x)
                    point_yy = Mul (point_y, point_y)
                    point_length = Add (point_xx, point_yy)
                    xx = Mul (old_x, old_x)
                    yy = Mul (old_y, old_y)
                    length = Add (xx, yy)
                    nearer = Less (point_length, length)
                    positive = Greater (cross, flat)
                    tie_precedes = And (tie, nearer)
                    no_tie = Not (tie)
                    turn_precedes = And (no_tie, positive)
                    precedes = Or (tie_precedes, turn_precedes)
                    follows = Not (precedes)
                    before_row = Less (columns, row)
                    sorted = And (inner, before_row)
                    stays = And (follows, sorted)
                    ranks = Where (stays, columns, none)
                    ranked = Cast <to = 1> (ranks)
                    last = ArgMax <axis = 1, keepdims = 1> (ranked)
                    after_last = Add (last, unit)
                    precedes_first = Gather <axis = 1> (precedes, first)
                    wanted_place = Where (precedes_first, unit, after_last)
                    is_point = Less (row, count)
                    place = Where (is_point, wanted_place, row)
                    behind_place = Greater (columns, place)
                    up_to_row = LessOrEqual (columns, row)
                    moves = And (behind_place, up_to_row)
                    here = Equal (columns, place)
                    shifted_x = Gather <axis = 1> (old_x, before)
                    shifted_y = Gather <axis = 1> (old_y, before)
                    moved_x = Where (moves, shifted_x, old_x)
                    moved_y = Where (moves, shifted_y, old_y)
                    new_x = Where (here, point_x, moved_x)
                    new_y = Where (here, point_y, moved_y)
                    next_row = Add (row, unit)
                    has_next = Less (next_row, count)
                    has_next_number = Cast <to = 7> (has_next)
                    with_none = Concat <axis = 0> (has_next_number, no_pair)
                    pairs_with_next = ReduceSum <keepdims = 0> (with_none)
                    go_on = Greater (pairs_with_next, zero)
                }}>
            sorted_xx = Mul (sorted_x, sorted_x)
            sorted_yy = Mul (sorted_y, sorted_y)
            lengths = Add (sorted_xx, sorted_yy)
            long = Greater (lengths, same_point)
            others = And (inner, counted)
            far = And (long, others)
            far_number = Cast <to = 1> (far)
            second = ArgMax <axis = 1, keepdims = 1> (far_number)
            has_second = GatherElements <axis = 1> (far, second)
            size_of_line = Where (has_second, two, unit)
            after_second = Add (second, unit)
            begin = Where (has_second, after_second, count)
            second_x = GatherElements <axis = 1> (sorted_x, second)
            second_y = GatherElements <axis = 1> (sorted_y, second)
            is_first = Equal (columns, unit)
            line_x = Where (is_first, second_x, sorted_x)
            line_y = Where (is_first, second_y, sorted_y)
            hull_x, hull_y, size, scanned = Loop (, yes, line_x, line_y, size_of_line, begin) <body = scan
                (int64 step, bool going, float[P,{POINTS}] scan_x, float[P,{POINTS}] scan_y,
                 int64[P,1] scan_size, int64[P,1] scan_next)
                => (bool goes_on, float[P,{POINTS}] next_x, float[P,{POINTS}] next_y,
                    int64[P,1] next_size, int64[P,1] next_next) {{
                    open = Less (scan_next, count)
                    size_less_two = Sub (scan_size, two)
                    place1 = Max (size_less_two, zero)
                    size_less_one = Sub (scan_size, unit)
                    place2 = Max (size_less_one, zero)
                    place3 = Min (scan_next, end)
                    x1 = GatherElements <axis = 1> (scan_x, place1)
                    y1 = GatherElements <axis = 1> (scan_y, place1)
                    x2 = GatherElements <axis = 1> (scan_x, place2)
                    y2 = GatherElements <axis = 1> (scan_y, place2)
                    x3 = GatherElements <axis = 1> (scan_x, place3)
                    y3 = GatherElements <axis = 1> (scan_y, place3)
                    x31 = Sub (x3, x1)
                    y31 = Sub (y3, y1)
                    x21 = Sub (x2, x1)
                    y21 = Sub (y2, y1)
                    forth3 = Mul (x31, y21)
                    back3 = Mul (x21, y31)
                    turns = Sub (forth3, back3)
                    concave = GreaterOrEqual (turns, flat)
                    has_two = Greater (scan_size, unit)
                    may_drop = And (open, has_two)
                    drops = And (may_drop, concave)
                    stays3 = Not (drops)
                    adds = And (open, stays3)
                    at_size = Equal (columns, scan_size)
                    put = And (adds, at_size)
                    next_x = Where (put, x3, scan_x)
                    next_y = Where (put, y3, scan_y)
                    added = Cast <to = 7> (adds)
                    dropped = Cast <to = 7> (drops)
                    grown = Add (scan_size, added)
                    next_size = Sub (grown, dropped)
                    next_next = Add (scan_next, added)
                    is_open = Less (next_next, count)
                    open_number = Cast <to = 7> (is_open)
                    open_with_none = Concat <axis = 0> (open_number, no_pair)
                    open_pairs = ReduceSum <keepdims = 0> (open_with_none)
                    goes_on = Greater (open_pairs, zero)
                }}>
        }}""",
    )
)
"""(x, y, count) -> points hull_x, hull_y (P, 24) float32 of the convex hull, and their number (P, 1) int64.

x, y (P, 24) float32 are relative to the first point, (0, 0), which is that of smallest y, of these of
smallest x, and begins Graham's scan. `count` (P, 1) int64 is the number of points of each row, which come
first. Points of the hull are in the order of growing angle from x towards y; columns from their number on
mean nothing. Opset 15 or later. P may be 0: what is added up over the pairs has one row more, since ONNX
Runtime refuses sums over no rows on CUDA."""


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
    """Return x and y (P, 4) of corners around `middle` (P, 2); opposite ones are mirrored at the centre."""
    (x, y), (width, height) = (boxes[:, :2] - middle).unbind(1), boxes[:, 2:4].unbind(1)
    angle = boxes[:, 4].to(torch.float64)
    cos, sin = (values.to(torch.float32) * 0.5 for values in (angle.cos(), angle.sin()))
    x1, y1 = x - sin * height - cos * width, y + cos * height - sin * width
    x2, y2 = x + sin * height - cos * width, y - cos * height - sin * width
    xs, ys = [x1, x2, 2 * x - x1, 2 * x - x2], [y1, y2, 2 * y - y1, 2 * y - y2]
    return torch.stack(xs, 1), torch.stack(ys, 1)


def _overlap(corners: tuple[Tensor, Tensor], other_corners: tuple[Tensor, Tensor]) -> Tensor:
    """Return the area (P,) of the overlap of boxes with corners x and y (P, 4)."""
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
    """Return x, y (P, 16) of the points where edges cross, edge by edge, and which of them do."""
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
    """Return which of the points x, y (P, 4) lie in boxes with these corners and edges: (P, 4) bool."""
    x, y = points[0] - corners[0][:, :1], points[1] - corners[1][:, :1]
    along_x, along_y = edges[0][:, :1], edges[1][:, :1]
    across_x, across_y = edges[0][:, 3:], edges[1][:, 3:]
    along = x * along_x + y * along_y
    across = -(x * across_x + y * across_y)
    length, other_length = along_x * along_x + along_y * along_y, across_x * across_x + across_y * across_y
    return (along >= 0) & (across >= 0) & (along <= length) & (across <= other_length)


def _around_first(x: Tensor, y: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (P, 24) relative to that of smallest y, of these of smallest x, which becomes the first.

    Points from `count` (P, 1) on become zero.
    """
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
"""(boxes, others) -> (P,) float32: mmcv's `box_iou_rotated(boxes, others, aligned=True)` on the CPU.

Boxes (P, 5) are float32: x and y of the centre, width, height, and the angle in radians from x towards y,
which is mmcv's `clockwise=True` in a picture. Tensors on a GPU go to mmcv's CUDA kernel, unless traced."""
