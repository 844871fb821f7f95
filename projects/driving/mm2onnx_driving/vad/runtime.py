"""VAD as a stream: images, calibration, motion and command in, a driving scene out.

n boxes, M modes, T steps, V lines of P points.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.nodes import VAD
from mm2onnx_driving.common.runtime.bev_frames import BevFacts, BevOnnx, frame_with_record
from mm2onnx_driving.common.runtime.query_boxes import decode_rows
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.driving import DrivingScene, command_of, with_command
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.spec.facts import Count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.preparation import MultiViewRule


FORM = 'vad'
OUTPUTS = (
    'bev_embed', 'all_cls_scores', 'all_bbox_preds', 'all_traj_preds', 'all_traj_cls_scores',
    'map_all_cls_scores', 'map_all_pts_preds', 'ego_fut_preds', 'ego_plan',
)  # fmt: skip
DECIDED = 'all_traj_preds', 'all_traj_cls_scores', 'ego_fut_preds', 'ego_plan'
"""Outputs that depend on which lines an object attends to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VadFacts(BevFacts):
    """Also the most lines of a frame, and x, y (m) of the view's corner with the least of both."""

    max_lines: Count
    corner: tuple[float, float]


class VadOnnx(BevOnnx):
    families, files = ('vad',), (FORM,)

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        return dict(super().feeds_of(frame, before), command=np.array([command_of(frame)]))

    def moment(self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: Any = None) -> Frame:
        return with_command(super().moment(images_bgr, rig, root), rig.info)


def frame_with_command(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    return with_command(frame_with_record(images_bgr, rig, rule), rig.info)


def scene_of(facts: VadFacts, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    """Decode `OUTPUTS` of one frame; the last decoder layer counts."""
    boxes, rows = decode_rows(outputs['all_cls_scores'], outputs['all_bbox_preds'], facts)
    steps = outputs['all_traj_preds'][-1, 0][rows].astype(np.float32)
    steps = steps.reshape(*steps.shape[:2], -1, 2)
    scores = exact_sigmoid(outputs['map_all_cls_scores'][-1, 0])
    best = top_rows(scores.ravel(), facts.max_lines)
    lines, labels = np.divmod(best, scores.shape[1])
    points = outputs['map_all_pts_preds'][-1, 0][lines].astype(np.float32)
    return DrivingScene(
        boxes.boxes,
        boxes.scores,
        boxes.labels,
        trajectories=steps.cumsum(2) + boxes.boxes[:, None, None, :2],
        mode_scores=exact_sigmoid(outputs['all_traj_cls_scores'][-1, 0][rows]),
        line_points=points * np.float32(facts.extent) + np.float32(facts.corner),
        line_scores=scores.ravel()[best],
        line_labels=labels.astype(np.int64),
        plan_points=outputs['ego_plan'].astype(np.float32),
        plan_scores=np.ones(1, np.float32),
        plan_mode=np.zeros(1, np.int64),
        plan_final=outputs['ego_plan'][0].astype(np.float32),
    )


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    return scene_of(metadata.postprocess, outputs)


QUANTISED, RESULT = FORM, DrivingScene
OPENS = VadOnnx


# tensorrt_vad: its three files; the command chooses the plan outside of them.
#
# Unlike the node's, the record of the motion is the model's, and each scene begins with `head_no_prev`.
#
# Source: autoware_universe, autoware_tensorrt_vad, src/vad_model.hpp@02fa6a08 (facts, no code).


BACKBONE, FIRST, NEXT = VAD.graphs
FEEDS = dict(shift='bev_shift', lidar2img='lidar2img', can_bus='can_bus')
"""Entry of `img_metas` in the files -> name in the portable graph."""


class AutowareVad(VadOnnx):
    files, parts = VAD.graphs, ('backbone', 'first head', 'next head')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        feeds = self.feeds_of(frame, self.before(memory))
        (features,) = self.graphs[BACKBONE].run(dict(img=np.float32(feeds['img']))).values()
        graph = self.graphs[FIRST if memory is None else NEXT]
        given = {f'img_metas.0[{name}]': np.float32(feeds[ours]) for name, ours in FEEDS.items()}
        given['mlvl_feats.0'] = features
        if memory is not None:
            given['prev_bev'] = np.float32(memory.tensors['bev_embed'])
        axes = {tensor.name: tensor.axes for tensor in graph.spec.inputs}
        outputs = graph.run({name: values.reshape(axes[name]) for name, values in given.items()})
        found = {name.removeprefix('out.'): values for name, values in outputs.items()}
        plan = found['ego_fut_preds'][:, command_of(frame)].cumsum(1)
        return dict(found, ego_plan=plan)
