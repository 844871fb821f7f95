"""Facts of SparseDrive models, stored in files, and tensor names."""

import dataclasses
from typing import Any

from mmdeploy_ext.spec.facts import Count, Facts, Positive

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
