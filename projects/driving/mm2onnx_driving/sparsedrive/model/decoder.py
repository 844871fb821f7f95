"""SparseDrive's decoders: outputs of the heads to boxes with trajectories, lines and the plan.

Algorithm: swc-17/SparseDrive ec0225d, models/{detection3d,map,motion}/decoder.py.
Glossary: A instances, M modes of an agent, K modes and S steps of the plan; yaws counter-clockwise from x.
"""

from collections.abc import Mapping
from math import pi
from typing import Any

import torch
from torch import Tensor

from mm2onnx_driving.layers.sparse_instances.steps import CENTRE, COSINE, LOG_SIZE, SINE, VELOCITY

EGO_LENGTH_M, EGO_WIDTH_M = 4.08 * 1.1, 1.73 * 1.1
HEAD_ON = pi / 2
"""First yaw of the car."""
SHIFT_M = 0.5
SURE_FROM, STANDING_BELOW_M, PENALTY = 0.5, 0.5, -999.0


def best_first(scores: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the best scores (n,) and their indices, the first of equals first."""
    values, order = scores.sort(descending=True, stable=True)
    return values[:count], order[:count]


def boxes_with_trajectories(outputs: Mapping[str, Tensor], count: int, modes: int) -> dict[str, Tensor]:
    """Return `count` boxes (n, 10), their scores with the centerness, labels, ids, and ways (n, M, T, 2)."""
    scores, labels = outputs['pred_class_score'][0].sigmoid().max(-1)
    scores, rows = best_first(scores, count)
    centerness = outputs['pred_quality_score'][0, rows, 0].sigmoid()
    scores, order = best_first(scores * centerness)
    rows = rows[order]
    anchor = outputs['pred_anchor'][0, rows]
    yaw = torch.atan2(anchor[:, SINE], anchor[:, COSINE])[:, None]
    ways = outputs['motion_steps'][0, rows].unflatten(1, (modes, -1, 2)).cumsum(2)
    return dict(
        boxes_3d=torch.cat([anchor[:, CENTRE], anchor[:, LOG_SIZE].exp(), yaw, anchor[:, VELOCITY]], 1),
        scores_3d=scores,
        labels_3d=labels[rows],
        instance_ids=outputs['instance_id'][0, rows] if 'instance_id' in outputs else rows,
        trajs_3d=ways + anchor[:, None, None, :2],
        trajs_score=outputs['motion_scores'][0, rows].sigmoid(),
    )


def map_lines(points: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Return as many lines (n, P, 2) as there are queries; a query may give a line of several classes."""
    scores, pairs = best_first(logits.sigmoid().flatten(), len(points))
    rows, labels = pairs // logits.shape[1], pairs % logits.shape[1]
    return dict(vectors=points[rows].unflatten(1, (-1, 2)), scores=scores, labels=labels)


def plan_of(outputs: Mapping[str, Tensor], modes: int, use_rescore: bool) -> dict[str, Tensor]:
    """Return the plans (K, S, 2) of the command, their scores, and the chosen one."""
    logits = outputs['plan_scores'][0]
    plans = outputs['plan_steps'][0].unflatten(1, (-1, 2)).cumsum(1)
    if use_rescore:
        hit = hits(outputs, plans, modes)
        if not hit.all():
            logits = logits + PENALTY * hit
    return dict(planning=plans, planning_score=logits.sigmoid(), final_planning=plans[logits.argmax()])


def hits(outputs: Mapping[str, Tensor], plans: Tensor, modes: int) -> Tensor:
    """Return (K,) bool: the plan meets the most probable way of a sure agent.

    As published, the car's shift to its centre goes to the first two rows of the table of all pairs of agent,
    plan and step, with the table's seventh row as its yaw.
    """
    plans, anchor = plans.double(), outputs['pred_anchor'][0].double()
    steps = outputs['motion_steps'][0].double().unflatten(1, (modes, -1, 2))[:, :, : plans.shape[1]]
    best = outputs['motion_scores'][0].argmax(-1)
    ways = steps[torch.arange(len(steps)), best].cumsum(1)  # (A, S, 2)
    car_size = plans.new_tensor([EGO_LENGTH_M, EGO_WIDTH_M]).expand_as(plans)
    car_yaw = yaws_along(plans, torch.full_like(plans[:, 0, 0], HEAD_ON))
    table = torch.cat([plans, car_size, car_yaw[..., None]], 2).repeat(len(anchor), 1, 1, 1)
    rows = table.view(-1, table.shape[-1])
    if len(rows) > 6:
        first = rows[0] + SHIFT_M * rows[6].cos()
        second = rows[1] + SHIFT_M * rows[6].sin()
        rows[0], rows[1] = first, second
    is_sure = outputs['pred_class_score'][0].sigmoid().amax(-1) >= SURE_FROM
    table, anchor, ways = table[is_sure], anchor[is_sure], ways[is_sure]
    yaws = yaws_along(ways, torch.atan2(anchor[:, SINE], anchor[:, COSINE]))
    sizes = anchor[:, LOG_SIZE][:, :2].exp()[:, None].expand_as(ways)
    agents = torch.cat([ways + anchor[:, None, :2], sizes, yaws[..., None]], 2)[:, None].expand_as(table)
    return (holds_corner(table, agents) | holds_corner(agents, table)).any(2).any(0)


def yaws_along(ways: Tensor, first: Tensor) -> Tensor:
    """Return the yaws (n, S) of ways (n, S, 2) from the origin; standing ones keep the `first` yaw (n,)."""
    points = torch.cat([torch.zeros_like(ways[:, :1]), ways], 1)
    last = points.shape[1] - 1
    yaws = []
    for step in range(1, last + 1):
        along = points[:, min(step + 1, last)] - points[:, step - 1]
        yaws.append(torch.atan2(along[:, 1], along[:, 0]))
    is_standing = ways[:, -1].norm(dim=-1) < STANDING_BELOW_M
    return torch.where(is_standing[:, None], first[:, None], torch.stack(yaws, 1))


def holds_corner(boxes: Tensor, others: Tensor) -> Tensor:
    """Return whether a corner of the other box is in the box; boxes (..., 5): x, y, length, width, yaw."""
    corners = corners_of(others) - boxes[..., None, :2]
    cosine, sine = boxes[..., 4:].cos(), boxes[..., 4:].sin()
    ahead = corners[..., 0] * cosine + corners[..., 1] * sine
    aside = corners[..., 1] * cosine - corners[..., 0] * sine
    return ((ahead.abs() <= boxes[..., 2:3] / 2) & (aside.abs() <= boxes[..., 3:4] / 2)).any(-1)


def corners_of(boxes: Tensor) -> Tensor:
    """Return the corners (..., 4, 2) of boxes (..., 5)."""
    x, y, length, width, yaw = boxes.unbind(-1)
    ahead = torch.stack([length * yaw.cos(), length * yaw.sin()], -1) / 2
    left = torch.stack([-width * yaw.sin(), width * yaw.cos()], -1) / 2
    middle = torch.stack([x, y], -1)
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return torch.stack([middle + along * ahead + across * left for along, across in signs], -2)


def decoded(head: Any, outputs: Mapping[str, Tensor], command: int) -> dict[str, Tensor]:
    """Return the results of a frame, named as upstream; plans of other commands are zero."""
    planner = head.motion_plan_head
    use_rescore = planner.planning_decoder.use_rescore
    plan = plan_of(outputs, planner.fut_mode, use_rescore)
    for name in ('planning', 'planning_score'):
        every = plan[name].new_zeros(3, *plan[name].shape)
        every[command] = plan[name]
        plan[name] = every
    boxes = boxes_with_trajectories(outputs, head.det_head.decoder.num_output, planner.fut_mode)
    return {**boxes, **map_lines(outputs['map_points'][0], outputs['map_scores'][0]), **plan}
