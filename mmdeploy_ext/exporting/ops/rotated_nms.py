"""Non-maximum suppression of rotated boxes, mmcv's `nms_rotated`, in operators that every engine has.

The overlap of two rectangles is the polygon of at most 24 points: their corners that lie in the other one,
and the points where their edges cross. Points are ordered by their angle around the middle; the shoelace
formula gives the area. Points that coincide (equal boxes, common edges) add nothing, so no case is special.

Glossary: N boxes, M boxes that they are compared with, P = 24 points of a pair, n kept boxes.
"""

import torch

from mmdeploy_ext.exporting.ops.nms import greedy_keep
from mmdeploy_ext.exporting.ops.operator import Operator, register
from mmdeploy_ext.runtime import bev_nms

SLACK = 1e-5
"""Relative to the box: a corner this far outside still counts as inside."""
EDGE_PAIRS = ([edge for edge in range(4) for _ in range(4)], [0, 1, 2, 3] * 4)
CORNERS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))


def _eager(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    from mmcv.ops import nms_rotated

    if boxes.shape[0] == 0:  # mmcv gives None
        return boxes.new_zeros((0,), dtype=torch.int64)
    return nms_rotated(boxes, scores, iou_threshold)[1].clone()


def _numpy(boxes, scores, iou_threshold):  # noqa: ANN001, ANN202
    import numpy as np

    order = np.argsort(-scores, kind='stable')
    return order[bev_nms.rotated_nms(boxes[order], float(iou_threshold))].astype(np.int64)


def _traceable(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = torch.topk(scores, scores.shape[0])[1]
    ordered = boxes[order]
    rank = torch.arange(scores.shape[0], device=scores.device)
    behind = rank[:, None] < rank[None, :]
    keep = greedy_keep((rotated_iou(ordered, ordered) >= iou_threshold) & behind)
    return order[torch.nonzero(keep)[:, 0]]


def rotated_iou(boxes: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union (N, M) of all pairs of `boxes` (N, 5) and `columns` (M, 5).

    Boxes are x, y, width, height, angle in radians, as those of `rotated_nms`.
    """
    middle = boxes[:, None, :2] - columns[None, :, :2]  # around the second box: no digits are lost far from 0
    first = _corners(boxes)[:, None] + middle[:, :, None]
    second = _corners(columns)[None].expand_as(first)
    crossings, hit = _crossings(first, second)
    points = torch.cat([first, second, crossings], 2)
    valid = torch.cat([_inside(first, columns[None], 0), _inside(second, boxes[:, None], middle), hit], 2)
    overlap = _area(points, valid)
    areas = (boxes[:, 2] * boxes[:, 3])[:, None] + (columns[:, 2] * columns[:, 3])[None]
    return overlap / (areas - overlap).clamp(min=1e-12)


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """Return (N, 4, 2), counter-clockwise, relative to the centres."""
    half = boxes.new_tensor(CORNERS) * boxes[:, None, 2:4]
    cos, sin = boxes[:, 4:5].cos(), boxes[:, 4:5].sin()
    x = cos * half[..., 0] - sin * half[..., 1]
    y = sin * half[..., 0] + cos * half[..., 1]
    return torch.stack([x, y], -1)


def _inside(points: torch.Tensor, boxes: torch.Tensor, centre: torch.Tensor | float) -> torch.Tensor:
    """Return (N, M, 4) bool, which of four points (N, M, 4, 2) lie in a box.

    Only the size and angle of `boxes`, which broadcast to (N, M, 5), are used; their centre is `centre`
    (N, M, 2), or 0.
    """
    offset = points - (centre[:, :, None] if isinstance(centre, torch.Tensor) else centre)
    cos, sin = boxes[..., 4:5].cos(), boxes[..., 4:5].sin()
    along = (cos * offset[..., 0] + sin * offset[..., 1]).abs()
    across = (cos * offset[..., 1] - sin * offset[..., 0]).abs()
    reach = boxes[..., 2:4] / 2 * (1 + SLACK)
    return (along <= reach[..., 0:1]) & (across <= reach[..., 1:2])


def _crossings(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points (N, M, 16, 2) where edges cross, and which of them do (N, M, 16)."""
    # every edge with every other, by index: a Reshape of no pair at all would fail
    i, j = (first.new_tensor(index, dtype=torch.int64) for index in EDGE_PAIRS)
    start1, edge1 = first[:, :, i], (first.roll(-1, 2) - first)[:, :, i]
    start2, edge2 = second[:, :, j], (second.roll(-1, 2) - second)[:, :, j]
    gap = start2 - start1
    cross = _cross(edge1, edge2)
    parallel = cross.abs() <= 1e-12
    safe = torch.where(parallel, torch.ones_like(cross), cross)
    share1, share2 = _cross(gap, edge2) / safe, _cross(gap, edge1) / safe  # of each edge, up to the crossing
    hit = ~parallel & (share1 >= 0) & (share1 <= 1) & (share2 >= 0) & (share2 <= 1)
    return start1 + edge1 * share1[..., None], hit


def _cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _area(points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the area (N, M) of the convex polygons of the points (N, M, P, 2) that are valid (N, M, P)."""
    count = valid.sum(2, keepdim=True).clamp(min=1)
    visible = torch.where(valid[..., None], points, torch.zeros_like(points))
    offset = visible - (visible.sum(2) / count)[:, :, None]
    # grows with the angle as atan2 does, 0..4, without a division by nothing
    length = (offset[..., 0].abs() + offset[..., 1].abs()).clamp(min=1e-12)
    slope = offset[..., 0] / length
    angle = torch.where(offset[..., 1] >= 0, 1 - slope, 3 + slope)
    angle = torch.where(valid, angle, torch.full_like(angle, 9.0))
    order = torch.topk(angle, angle.shape[2], largest=False)[1]
    ring = torch.gather(offset, 2, order[..., None].expand(-1, -1, -1, 2))
    ring_valid = torch.gather(valid, 2, order)[..., None]
    # invalid points follow the last one: as copies of the first they close the ring and add nothing
    ring = torch.where(ring_valid, ring, ring[:, :, :1])
    area = _cross(ring, ring.roll(-1, 2)).sum(2) / 2
    return torch.where(count[..., 0] > 2, area.clamp(min=0), torch.zeros_like(area))


rotated_nms = register(
    Operator(
        'RotatedNms',
        _eager,
        inputs=dict(boxes='N 5', scores='N'),
        outputs=('keep',),
        example=lambda: (
            torch.tensor([[0.0, 0, 4, 2, 0.3], [0.5, 0, 4, 2, 0.2], [9, 9, 2, 2, 0]]),
            torch.tensor([0.9, 0.8, 0.7]),
        ),
        traceable=_traceable,
        shapes=lambda boxes, *_: boxes.new_empty(
            (torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64
        ),
        reference=_numpy,
    )
)
"""(boxes, scores, iou_threshold) -> (n,) int64 indices of kept boxes, by descending score; (0,) for no boxes.

A box is kept unless a better one that is kept overlaps it by the threshold (above 0) or more. Boxes (N, 5)
are float32 x, y, width, height, angle in radians, clockwise or not: the same for all; scores (N,).

Source: mmcv 1.7.2 `nms_rotated` on the CPU."""
