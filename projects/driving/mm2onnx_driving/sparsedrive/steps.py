"""SparseDrive from features and memory to instances, lines, trajectories, plans and the next memory.

Modules are the user's or ours. Source: swc-17/SparseDrive ec0225d, models/{instance_bank,sparsedrive_head}.py
and models/motion/{motion_planning_head,motion_blocks,instance_queue}.py.
Glossary: A instances, M kept ones, C channels, Q earlier frames of the queue, T steps, K modes.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mm2onnx_driving.layers import sparse_instances
from mm2onnx_driving.layers.sparse_instances import (
    COSINE,
    SINE,
    Pictures,
    Remembered,
    SparseBox3DKeyPointsGenerator,
)
from mmdeploy_ext.upstream.operators.attention import multi_head

Memory = Mapping[str, Tensor]
"""`facts.MEMORY` describes the tensors."""
SPEED, VY = 6, 9
"""Column of the status' speed, and of an anchor's velocity along y."""
COMMANDS = 3
SINE_FIRST = (*range(SINE), COSINE, SINE, *range(COSINE + 1, sparse_instances.NUMBERS))
"""Columns of projected anchors, which have cosine and sine in the place of each other."""


class Moment(NamedTuple):
    """The last frame as seen by this one.

    Attributes:
        seconds: (1,) since the last frame, or the default.
        near: (1,) bool, at most `max_time_interval` ago.
        motion: (1, 4, 4), last LiDAR frame to this one.
        gap_s: (1,) seconds since the last frame, however long.
    """

    seconds: Tensor
    near: Tensor
    motion: Tensor
    gap_s: Tensor


def moved_boxes(anchor: Tensor, motion: Tensor, gap_s: Tensor | None = None) -> Tensor:
    """Return anchors (1, n, 11) in the LiDAR frame after `motion`, moved by velocity over `gap_s`."""
    seconds = motion.new_zeros(1) if gap_s is None else gap_s
    moved = SparseBox3DKeyPointsGenerator.anchor_projection(anchor, motion, seconds)
    return moved[..., SINE_FIRST]


def moved_lines(anchor: Tensor, motion: Tensor) -> Tensor:
    points = anchor.unflatten(-1, (-1, 2))
    return (
        (motion[:, None, None, :2, :2] @ points[..., None])[..., 0] + motion[:, None, None, :2, 3]
    ).flatten(2)


def kept_rows(values: Tensor, kept: Tensor) -> Tensor:
    return values[:, kept[0]]


def confidences(logits: Tensor, before: Tensor | None, near: Tensor | None, decay: float) -> Tensor:
    """Return (1, A) of logits (1, A, classes); kept instances come first; their decay is limited."""
    own = logits.amax(-1).sigmoid()
    if before is None:
        return own
    least = torch.where(near[:, None], before * decay, torch.zeros_like(before))
    count = before.shape[1]
    return torch.cat([torch.maximum(least, own[:, :count]), own[:, count:]], 1)


def ego_feature(queue: nn.Module, front: Tensor) -> Tensor:
    """Return (1, 1, C) of the last map (1, C, h, w) of the front camera."""
    return queue.ego_feature_encoder(front).flatten(1)[:, None]


def sine_embedding(points: Tensor, channels: int) -> Tensor:
    """Return embeddings (..., C) of places x, y (m): y before x."""
    half = channels // 2
    periods = 10000 ** (
        2 * torch.div(torch.arange(half, device=points.device), 2, rounding_mode='floor') / half
    )
    angles = points[..., None] * (2 * math.pi) / periods
    waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)
    return torch.cat([waves[..., 1, :], waves[..., 0, :]], -1)


def turned(points: Tensor, anchor: Tensor) -> Tensor:
    """Return points (1, A, K, 2) of the agents' frames turned by the yaw of anchors (1, A, 11)."""
    sine, cosine = anchor[..., SINE, None], anchor[..., COSINE, None]
    norm = (sine * sine + cosine * cosine).sqrt()
    sine, cosine = (
        torch.where(norm > 0, value / norm, rest) for value, rest in ((sine, norm), (cosine, norm + 1))
    )
    x, y = points.unbind(-1)
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine], -1)


def visible(period: Tensor, slots: int) -> Tensor:
    """Return (..., slots) bool: the newest `period` (...) slots, at the end."""
    return torch.arange(slots, 0, -1, device=period.device) <= period[..., None]


def of_modes(layer: nn.Module, motion_query: Tensor, plan_query: Tensor, ego: Tensor) -> tuple[Tensor, ...]:
    """Return logits and steps of agents and plans, and the status.

    Agents: (1, A, K) and (1, A, K * T * 2); plans: (1, 3 * K) and (1, 3 * K, T * 2); status: (1, 1, 10).
    """
    return (
        layer.motion_cls_branch(motion_query)[..., 0],
        layer.motion_reg_branch(motion_query).flatten(2),
        layer.plan_cls_branch(plan_query)[..., 0],
        layer.plan_reg_branch(plan_query),
        layer.plan_status_branch(ego),
    )


class Queue(NamedTuple):
    """Instances and ego (last row) over frames, newest last.

    Attributes:
        feature, anchor: (1, A + 1, Q + 1, C or 11).
        period: (1, A + 1) int64, number of frames that count.
    """

    feature: Tensor
    anchor: Tensor
    period: Tensor


def queue_of(
    queue: nn.Module,
    feature: Tensor,
    anchor: Tensor,
    ego: Tensor,
    memory: Memory | None,
    moment: Moment | None,
) -> Queue:
    ego_anchor, slots = queue.ego_anchor[None], queue.queue_length - 1
    if memory is not None:
        speed = torch.where(moment.near, memory['ego_status'][:, 0, SPEED], torch.zeros_like(moment.seconds))
        sides = ego_anchor[..., :VY], ego_anchor[..., VY + 1 :]
        ego_anchor = torch.cat([sides[0], speed[:, None, None], sides[1]], -1)
    rows = torch.cat([feature, ego], 1), torch.cat([anchor, ego_anchor], 1)
    if memory is None:
        past = [values.new_zeros(1, values.shape[1], slots, values.shape[2]) for values in rows]
        period = torch.zeros(rows[0].shape[:2], dtype=torch.int64, device=feature.device)
    else:
        missing = feature.shape[1] - memory['queue_feature'].shape[1]
        past = [
            torch.cat(
                [pad(memory[f'queue_{name}'], (0, 0, 0, 0, 0, missing)), memory[f'ego_{name}'][:, None]], 1
            )
            for name in ('feature', 'anchor')
        ]
        past[1] = moved_boxes(past[1].flatten(1, 2), moment.motion).unflatten(1, (-1, slots))
        period = torch.cat([pad(memory['queue_period'], (0, missing)), memory['ego_period'][None]], 1)
        period = period * moment.near.to(torch.int64)
    both = (torch.cat([old, new[:, :, None]], 2) for old, new in zip(past, rows, strict=True))
    return Queue(*both, (period + 1).clamp(max=slots + 1))


def drive(
    head: nn.Module, detected: Mapping[str, Tensor], lines: Mapping[str, Tensor], queue: Queue
) -> tuple:
    """Return the result of `of_modes`, and the refined ego feature (1, 1, C)."""
    planner, encoder = head.motion_plan_head, head.det_head.anchor_encoder
    scores, position = detected['logits'].sigmoid(), detected['position']
    _, best = sparse_instances.best_rows(scores.amax(-1), planner.num_det)
    _, best_lines = sparse_instances.best_rows(lines['logits'].sigmoid().amax(-1), planner.num_map)
    ego, ego_position = queue.feature[:, -1:, -1], sparse_instances.embed(encoder, queue.anchor[:, -1:, -1])
    feature, position = torch.cat([detected['feature'], ego], 1), torch.cat([position, ego_position], 1)
    chosen = torch.cat([kept_rows(detected['feature'], best), ego], 1)
    chosen_position = torch.cat([kept_rows(detected['position'], best), ego_position], 1)
    line, line_position = (kept_rows(lines[name], best_lines) for name in ('feature', 'position'))
    past = queue.feature[0], sparse_instances.embed(encoder, queue.anchor[0])
    past_keys, past_values = sparse_instances.with_position(planner, *past), planner.fc_before(past[0])
    hidden = ~visible(queue.period[0], past_keys.shape[1])[:, None, None]  # (A + 1, 1, 1, Q + 1)
    for kind, layer in zip(planner.operation_order, planner.layers, strict=True):
        if kind == 'temp_gnn':
            rows = feature.transpose(0, 1), position.transpose(0, 1)
            feature = sparse_instances.attend(
                planner, layer, *rows, past_keys, past_values, hidden
            ).transpose(0, 1)
        elif kind == 'gnn':
            keys = sparse_instances.with_position(planner, chosen, chosen_position)
            feature = sparse_instances.attend(
                planner, layer, feature, position, keys, planner.fc_before(chosen), None
            )
        elif kind == 'cross_gnn':
            attention, sources = layer.attn, (feature + position, line + line_position, line)
            weights = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
            feature = feature + attention.out_proj(multi_head(sources, *weights))
        elif kind == 'refine':
            query = feature + position
            classes = scores.argmax(-1)
            ends = turned(planner.motion_anchor[..., -1, :][classes], detected['anchor'])
            modes = planner.motion_anchor_encoder(sine_embedding(ends, feature.shape[-1]))
            plans = planner.plan_anchor_encoder(
                sine_embedding(planner.plan_anchor[..., -1, :], feature.shape[-1])
            )
            motion_query = modes + query[:, :-1, None]
            plan_query = plans.flatten(0, 1)[None] + query[:, -1:]
            outputs = of_modes(layer, motion_query, plan_query, query[:, -1:])
        else:
            feature = layer(feature)
    return (*outputs, feature[:, -1:])


def run_frame(
    head: nn.Module,
    pictures: Pictures,
    ego: Tensor,
    command: Tensor,
    memory: Memory | None,
    moment: Moment | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the outputs of a frame and the next memory, named as in `facts`; `command` is (1,) int64."""
    det, lanes = head.det_head, head.map_head
    last = last_lines = None
    interval = ego.new_full((1,), det.instance_bank.default_time_interval)
    if memory is not None:
        interval = moment.seconds
        moved = moved_boxes(memory['anchor'], moment.motion, moment.gap_s)
        last = Remembered(memory['feature'], moved, moment.near)
        last_lines = Remembered(
            memory['map_feature'], moved_lines(memory['map_anchor'], moment.motion), moment.near
        )
    feature, anchor, logits, quality = sparse_instances.run_head(det, pictures, interval, last)
    line_feature, points, line_logits, _ = sparse_instances.run_head(
        lanes, pictures, None, last_lines, title='map_'
    )
    detected = dict(
        feature=feature,
        anchor=anchor,
        logits=logits,
        position=sparse_instances.embed(det.anchor_encoder, anchor),
    )
    lines = dict(
        feature=line_feature,
        logits=line_logits,
        position=sparse_instances.embed(lanes.anchor_encoder, points),
    )
    queue = queue_of(head.motion_plan_head.instance_queue, feature, anchor, ego, memory, moment)
    motion_logits, motion_steps, plan_logits, plan_steps, status, refined = drive(
        head, detected, lines, queue
    )

    before = {name: None if memory is None else memory[name] for name in ('confidence', 'map_confidence')}
    near = None if moment is None else moment.near
    confidence = confidences(logits, before['confidence'], near, det.instance_bank.confidence_decay)
    line_confidence = confidences(
        line_logits, before['map_confidence'], near, lanes.instance_bank.confidence_decay
    )
    ids = torch.full(logits.shape[:2], -1, dtype=torch.int64, device=logits.device)
    next_id = torch.zeros(1, dtype=torch.int64, device=logits.device)
    if memory is not None:
        count, next_id = memory['instance_id'].shape[1], memory['prev_id']
        ids = torch.cat(
            [torch.where(near[:, None], memory['instance_id'], ids[:, :count]), ids[:, count:]], 1
        )
    new = (ids < 0).to(torch.int64)
    ids = torch.where(new > 0, next_id + new.cumsum(1) - 1, ids)

    best, kept = sparse_instances.best_rows(confidence, det.instance_bank.num_temp_instances)
    best_lines, kept_lines = sparse_instances.best_rows(
        line_confidence, lanes.instance_bank.num_temp_instances
    )
    is_tracked = logits.amax(-1).sigmoid() > head.motion_plan_head.instance_queue.tracking_threshold
    period = kept_rows(queue.period[:, :-1] * is_tracked, kept)
    shown, shown_ego = (
        visible(of, queue.feature.shape[2] - 1)[..., None] for of in (period, queue.period[:, -1:])
    )
    refined_queue = torch.cat([queue.feature[:, -1, 1:-1], refined], 1)
    post = dict(
        feature=kept_rows(feature, kept),
        anchor=kept_rows(anchor, kept),
        confidence=best,
        instance_id=kept_rows(ids, kept),
        prev_id=next_id + new.sum(1),
        queue_feature=kept_rows(queue.feature[:, :-1, 1:], kept) * shown,
        queue_anchor=kept_rows(queue.anchor[:, :-1, 1:], kept) * shown,
        queue_period=period,
        map_feature=kept_rows(line_feature, kept_lines),
        map_anchor=kept_rows(points, kept_lines),
        map_confidence=best_lines,
        ego_feature=refined_queue * shown_ego[:, 0],
        ego_anchor=queue.anchor[:, -1, 1:] * shown_ego[:, 0],
        ego_period=queue.period[:, -1],
        ego_status=status,
    )
    outputs = dict(
        pred_anchor=anchor,
        pred_class_score=logits,
        pred_quality_score=quality,
        map_points=points,
        map_scores=line_logits,
        motion_scores=motion_logits,
        motion_steps=motion_steps,
        plan_scores=plan_logits.unflatten(1, (COMMANDS, -1))[:, command[0]],
        plan_steps=plan_steps.unflatten(1, (COMMANDS, -1))[:, command[0]],
        instance_id=ids,
        confidence=confidence,
        line_confidence=line_confidence,
    )
    return outputs, post
