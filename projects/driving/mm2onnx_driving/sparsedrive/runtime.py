"""SparseDrive as a stream: images, calibration, pose, time and command in, a driving scene out.

Source: swc-17/SparseDrive ec0225d, models/{detection3d,map,motion}/decoder.py.
Glossary: A instances, K modes, S steps of a plan.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.common.runtime.instances import (
    CENTRE,
    COSINE,
    LOG_SIZE,
    SINE,
    InstanceStream,
    decode,
    gap_s,
    is_near,
    time_interval,
)
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.driving import DrivingScene, Plan, Polylines, command_of, with_command
from mmdeploy_ext.runtime.geometry import exact_sigmoid, relative_motion
from mmdeploy_ext.runtime.streams import frame_of_rig
from mmdeploy_ext.spec.facts import Count, Facts, Positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.metadata import Metadata


# Facts of SparseDrive models, stored in files, and tensor names.


BOXES = ('pred_anchor', 'pred_class_score', 'pred_quality_score')
LINES = ('map_points', 'map_scores')
MOTION = ('motion_scores', 'motion_steps')
PLAN = ('plan_scores', 'plan_steps')
OUTPUTS = (*BOXES, *LINES, *MOTION, *PLAN, 'instance_id', 'confidence', 'line_confidence')
MEMORY = {
    'feature': 'features of the kept instances',
    'anchor': 'anchors of the kept instances',
    'confidence': 'confidences of the kept instances',
    'instance_id': 'track ids of the kept instances',
    'prev_id': 'next track id',
    'queue_feature': 'features of the instances in past frames, oldest first',
    'queue_anchor': 'anchors of the instances in past frames',
    'queue_period': 'number of consecutive frames of each instance in the queue',
    'map_feature': 'features of the kept lines',
    'map_anchor': 'points of the kept lines',
    'map_confidence': 'confidences of the kept lines',
    'ego_feature': 'features of the ego vehicle in past frames',
    'ego_anchor': 'anchors of the ego vehicle in past frames',
    'ego_period': 'number of frames of the ego vehicle in the queue',
    'ego_status': 'predicted ego status, which contains the speed',
}
"""Tensor of the memory, in its frame's LiDAR frame -> meaning; prefixes are `pre_` and `post_`."""


@dataclasses.dataclass(frozen=True)
class SparseDriveFacts(Facts):
    """Facts of a SparseDrive.

    Attributes:
        max_num: maximum of boxes.
        score_threshold: None; a threshold would leave instances without an id.
        num_classes, num_line_classes: of boxes and of lines.
        default_time_interval: seconds; the interval without a last frame, of 0, or above `max_time_interval`.
        max_time_interval: seconds, in either direction.
        motion_steps, plan_steps: points of a trajectory and of a plan.
        line_points: points of a line.
        use_rescore: whether colliding plans lose their score.
    """

    max_num: Count
    score_threshold: float | None
    num_classes: Count
    num_line_classes: Count
    default_time_interval: Positive
    max_time_interval: Positive
    motion_steps: Count
    plan_steps: Count
    line_points: Count
    use_rescore: bool


def facts_of(head: Any) -> SparseDriveFacts:
    bank, lines, planner = head.det_head.instance_bank, head.map_head, head.motion_plan_head
    return SparseDriveFacts(
        max_num=int(head.det_head.decoder.num_output),
        score_threshold=head.det_head.decoder.score_threshold,
        num_classes=int(head.det_head.layers[-1].cls_layers[-1].out_features),
        num_line_classes=int(lines.layers[-1].cls_layers[-1].out_features),
        default_time_interval=float(bank.default_time_interval),
        max_time_interval=float(bank.max_time_interval),
        motion_steps=int(planner.fut_ts),
        plan_steps=int(planner.ego_fut_ts),
        line_points=lines.instance_bank.anchor.shape[1] // 2,
        use_rescore=bool(planner.planning_decoder.use_rescore),
    )


# ---- outputs to a driving scene; colliding plans lose their score


EGO_SIZE_M = (1.1 * 4.08, 1.1 * 1.73)
"""Length and width of the car, enlarged by a tenth."""
EGO_SHIFT_M, YAW_ROW = 0.5, 6
"""Intended: LiDAR to the car's centre, along its heading; see `collisions`."""
SURE = 0.5
"""Least confidence of an agent that a plan avoids."""
STANDING_M = 0.5
"""Agents and plans that move less keep their heading."""
COLLISION = -999.0
"""Added to a colliding plan's logit, unless all collide."""


def scene_of(facts: SparseDriveFacts, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    anchor, logits, quality = (
        outputs[name] for name in ('pred_anchor', 'pred_class_score', 'pred_quality_score')
    )
    boxes = decode(logits, anchor, quality, facts, np.arange(logits.shape[1])[None])
    rows, ids = boxes.ids, outputs.get('instance_id')
    steps = outputs['motion_steps'][0].reshape(len(anchor[0]), -1, facts.motion_steps, 2)
    ways = steps[rows].cumsum(2) + boxes.boxes[:, None, None, :2]
    lines = lines_of(facts, outputs['map_points'][0], outputs['map_scores'][0])
    plan = plan_of(facts, outputs, steps)
    return DrivingScene(
        boxes.boxes,
        boxes.scores,
        boxes.labels,
        None if ids is None else ids[0, rows],
        ways.astype(np.float32),
        exact_sigmoid(outputs['motion_scores'][0, rows]),
        *(lines.points, lines.scores, lines.labels),
        *(plan.points, plan.scores, np.array([plan.mode]), plan.final),
    )


def lines_of(facts: SparseDriveFacts, points: np.ndarray, logits: np.ndarray) -> Polylines:
    """Return lines, best first, of points (n, P * 2) and logits (n, classes)."""
    scores = exact_sigmoid(logits).ravel()
    best = top_rows(scores, len(points))
    lines = points[best // logits.shape[1]].reshape(len(best), facts.line_points, 2)
    return Polylines(lines, scores[best], best % logits.shape[1])


def plan_of(facts: SparseDriveFacts, outputs: Mapping[str, np.ndarray], steps: np.ndarray) -> Plan:
    """Return the plan of the command; `steps` (A, K, T, 2) are the agents'."""
    scores = outputs['plan_scores'][0].astype(np.float32)
    points = outputs['plan_steps'][0].reshape(len(scores), facts.plan_steps, 2).cumsum(1)
    if facts.use_rescore:
        modes = outputs['motion_scores'][0].argmax(-1)
        ways = steps[np.arange(len(steps)), modes, : facts.plan_steps].cumsum(1)
        is_hit = collisions(points, ways, outputs['pred_anchor'][0], outputs['pred_class_score'][0])
        scores = scores + np.float32(COLLISION) * (is_hit & ~is_hit.all())
    mode, points = int(scores.argmax()), points.astype(np.float32)
    return Plan(points, exact_sigmoid(scores), mode, points[mode])


def collisions(plans: np.ndarray, ways: np.ndarray, anchor: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return (K,) bool of plans (K, S, 2) and agents: ways (A, S, 2), anchors, logits (A, classes).

    As published, the shift to the car's centre is added to two rows of the table of agents, plans and steps,
    not to two columns, and its seventh row is the yaw: it changes the first plan's first two steps, for the
    first agent only.
    """
    ego_yaws = headings(plans.astype(np.float64), np.full(len(plans), np.pi / 2))
    sizes = np.broadcast_to(EGO_SIZE_M, plans.shape)
    ego = np.concatenate([plans, sizes, ego_yaws[..., None]], -1)
    ego = np.repeat(ego[None], len(anchor), 0)  # (A, K, S, 5)
    rows = ego.reshape(-1, ego.shape[-1])
    if len(rows) > YAW_ROW:
        rows[:2] += EGO_SHIFT_M * np.cos(rows[YAW_ROW]), EGO_SHIFT_M * np.sin(rows[YAW_ROW])
    sure = exact_sigmoid(logits.max(-1)) >= np.float32(SURE)
    ego, anchor, ways = ego[sure], anchor[sure].astype(np.float64), ways[sure].astype(np.float64)
    yaws = headings(ways, np.arctan2(anchor[:, SINE], anchor[:, COSINE]))
    places = ways + anchor[:, None, CENTRE][..., :2]
    agent_sizes = np.exp(anchor[:, LOG_SIZE])[:, None, None, :2]
    ego_boxes = ego[..., :2], ego[..., 4], ego[..., 2:4]
    agent_boxes = places[:, None], yaws[:, None], agent_sizes
    hit = has_corner_in(*ego_boxes, *agent_boxes) | has_corner_in(*agent_boxes, *ego_boxes)
    return hit.any((0, 2))


def headings(points: np.ndarray, first_yaw: np.ndarray) -> np.ndarray:
    """Return yaws (n, S) from point to point of ways (n, S, 2) that start at the origin."""
    whole = np.concatenate([np.zeros((len(points), 1, 2)), points], 1)
    after = np.concatenate([whole[:, 2:], whole[:, -1:]], 1)
    along = after - whole[:, :-1]
    yaws = np.arctan2(along[..., 1], along[..., 0])
    is_standing = np.linalg.norm(points[:, -1], axis=-1) < STANDING_M
    return np.where(is_standing[:, None], first_yaw[:, None], yaws)


def has_corner_in(
    place: np.ndarray,
    yaw: np.ndarray,
    size: np.ndarray,
    other: np.ndarray,
    other_yaw: np.ndarray,
    other_size: np.ndarray,
) -> np.ndarray:
    """Return whether a corner of the other box is in the box; places (..., 2), yaws (...), sizes (..., 2)."""
    signs = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) / 2
    corner = turned(signs * other_size[..., None, :], (other_yaw - yaw)[..., None])
    corner = corner + turned(other - place, -yaw)[..., None, :]
    return (np.abs(corner) <= size[..., None, :] / 2).all(-1).any(-1)


def turned(points: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    sine, cosine = np.sin(yaw), np.cos(yaw)
    return np.stack(
        [points[..., 0] * cosine - points[..., 1] * sine, points[..., 0] * sine + points[..., 1] * cosine], -1
    )


# ---- stream

FEATURES, FIRST, NEXT = FILES = ('sparsedrive_features', 'sparsedrive_first', 'sparsedrive_next')


class SparseDriveOnnx(InstanceStream):
    """The three files; the first frame has its own graph."""

    families, files, parts = ('sparsedrive',), FILES, ('features', 'first head', 'next head')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        features = self.graphs[FEATURES].run(dict(img=frame.images))
        command = np.array([command_of(frame)])
        feeds = dict(features, lidar2img=frame.lidar2img.astype(np.float32), command=command)
        if memory is None:
            return features | self.graphs[FIRST].run(feeds)
        facts, motion = self.metadata.postprocess, relative_motion(memory.ego_pose, frame.ego_pose)
        feeds |= {f'pre_{name}': memory.tensors[name] for name in MEMORY}
        feeds |= dict(
            gap=np.array([gap_s(memory, frame.timestamp_s)]),
            time_interval=time_interval(facts, memory, frame.timestamp_s),
            near=np.float32([is_near(facts, memory, frame.timestamp_s)]),
            motion=motion[None].astype(np.float32),
        )
        return features | self.graphs[NEXT].run(feeds)

    def hidden(self, name: str) -> bool:
        return name.startswith('post_')

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return {name: outputs[f'post_{name}'] for name in MEMORY}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[NEXT].spec
        return {name: tuple(spec.tensor(f'pre_{name}').axes) for name in MEMORY}

    def moment(self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: Any = None) -> Frame:
        return frame_with_command(images_bgr, self.in_box_frame(rig), self.rule)


def frame_with_command(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: Any) -> Frame:
    return with_command(frame_of_rig(images_bgr, rig, rule), rig.info)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    return scene_of(metadata.postprocess, outputs)


QUANTISED, RESULT = NEXT, DrivingScene
OPENS = SparseDriveOnnx
