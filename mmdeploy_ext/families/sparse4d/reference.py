"""Sparse4D in PyTorch as a stepper: the test path of the user's detector or of ours, unpatched."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.taps import collect_taps, tap
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.sparse4d.runtime.boxes import InstanceBoxes
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

CACHED = ('cached_feature', 'cached_anchor', 'confidence')
"""Attributes of the live bank that are its memory, besides the ids."""
PREDICTIONS = dict(classification='pred_class_score', prediction='pred_anchor', quality='pred_quality_score')
"""What the live head returns, of each refinement -> output of the graphs, of the last one."""


class Sparse4DReference:
    """The detector's own test path, whose head keeps the memory.

    Nothing empties it but `reset` and a `state` of None: neither another scene nor a gap, as in upstream's
    code. The token of a scene is only handed on: '' after a frame without one, where `Sparse4DOnnx` keeps the
    last one.

    Attributes:
        shows_features: whether the features of the pictures are an output, too.
    """

    def __init__(self, model: torch.nn.Module, shows_features: bool = False) -> None:
        self.model, self.head, self.bank = model, model.head, model.head.instance_bank
        self.shows_features = shows_features
        self.device = next(model.parameters()).device
        refinements = [
            layer
            for kind, layer in zip(self.head.operation_order, self.head.layers, strict=True)
            if kind == 'refine'
        ]
        self.first_refinement = refinements[self.head.num_single_frame_decoder - 1]
        self.reset()

    def reset(self) -> None:
        """Empty the memory; ids begin at 0."""
        self.bank.reset()
        self._scene = ''

    @property
    def state(self) -> StreamState | None:
        """The kept instances and the next id, in the LiDAR frame of the last frame; see `Stepper.state`.

        None before the first frame.
        """
        bank = self.bank
        if bank.cached_anchor is None:
            return None
        tensors = {name: _array(getattr(bank, name)) for name in CACHED}
        tensors['instance_id'] = _array(bank.instance_id[:, : bank.num_temp_instances])
        tensors['prev_id'] = np.array([int(bank.prev_id)], np.int64)
        pose = np.array(bank.metas['img_metas'][0]['T_global'], np.float64)
        return StreamState(tensors, pose, float(bank.metas['timestamp'][0]), self._scene)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is None:
            return
        for name in CACHED:
            values = torch.from_numpy(np.array(state.tensors[name], np.float32))
            setattr(self.bank, name, values.to(self.device))
        ids = torch.full((1, self.bank.num_anchor), -1, dtype=torch.int64, device=self.device)
        ids[:, : self.bank.num_temp_instances] = torch.from_numpy(np.array(state.tensors['instance_id']))
        self.bank.instance_id, self.bank.prev_id = ids, int(state.tensors['prev_id'][0])
        self.bank.metas = self._moment(state.ego_pose, state.timestamp_s)
        self._scene = state.scene_token

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> InstanceBoxes:
        """Return the boxes that the head itself decodes from its outputs, the values of `PREDICTIONS`.

        Without `instance_id` (1, A) instances are numbered by their rows.
        """
        tensors = {key: [torch.from_numpy(np.array(outputs[name]))] for key, name in PREDICTIONS.items()}
        rows = np.arange(outputs['pred_anchor'].shape[1])[None]
        ids = torch.from_numpy(np.array(outputs.get('instance_id', rows)))
        with torch.no_grad():
            (result,) = self.head.post_process(dict(tensors, instance_id=ids))
        return boxes_of_result(result)

    def step(self, frame: Frame) -> StepResult:
        """Run one prepared frame; outputs, of the last refinement, for A instances (batch 1).

        `pred_instance_feature` and the values of `PREDICTIONS`, float32 (1, A, ...); `instance_id` and
        `confidence` of the rows; `pred_track_id` (1, A) int32, the ids of rows that were kept from the last
        frame, which are the first ones, -1 for others; `first_scores` (1, A) float64, by which this frame's
        own rows were chosen, NaN for kept ones, and for all rows if none was kept, as then none is chosen;
        and `feature` if `shows_features`. `was_reset` says that no kept instance came in: the memory was
        empty, or the bank left it out after a gap, with the memory still there.

        Raises:
            DataError: an invalid pose or time, before anything is run.
        """
        frame_checks.check_pose(frame.ego_pose)
        frame_checks.check_time(frame.timestamp_s)
        was_empty = self.bank.cached_anchor is None
        hooks = {
            self.head: lambda inputs, predictions: dict(predictions, rows=inputs[0][0]),
            self.head.layers[-1]: lambda inputs, refined: dict(instance_feature=inputs[0]),
            self.first_refinement: lambda inputs, refined: dict(first_logits=refined[1]),
        }
        images = torch.from_numpy(np.ascontiguousarray(frame.images, np.float32)).to(self.device)
        projection = torch.from_numpy(np.array(frame.lidar2img, np.float32))[None].to(self.device)
        height, width = frame.images.shape[2:]
        sample = dict(  # as the test loader has it, besides the pictures
            self._moment(frame.ego_pose, frame.timestamp_s),
            projection_mat=projection,
            image_wh=projection.new_tensor([[[width, height]] * len(frame.images)]),
        )
        with torch.no_grad(), collect_taps() as taps, watching(hooks) as outputs:
            results = self.model(images[None], **sample)
        outputs = {**taps, **outputs}  # ours taps what the layers of a repository are watched for
        self._scene = frame.scene_token or ''
        was_reset = was_empty or not bool(self.bank.mask[0])
        tensors = {
            'pred_instance_feature': _array(outputs['instance_feature']),
            **{name: _array(outputs[key][-1]) for key, name in PREDICTIONS.items()},
            'instance_id': _array(outputs['instance_id']),
            'confidence': _array(self.bank.temp_confidence),
            'first_scores': self._first_scores(outputs.get('first_logits'), was_reset),
        }
        tensors['pred_track_id'] = np.full_like(tensors['instance_id'], -1, np.int32)
        if not was_reset:
            num_temp = self.bank.num_temp_instances
            tensors['pred_track_id'][:, :num_temp] = tensors['instance_id'][:, :num_temp]
        if self.shows_features:
            tensors['feature'] = _array(outputs['rows'])
        for name, value in taps.items():
            tap(name, value)  # for `collect_taps` around this step
        for name, values in dict(tensors, img=frame.images, lidar2img=frame.lidar2img).items():
            tap(name, torch.from_numpy(np.array(values)))
        tap('ego_pose', torch.from_numpy(np.array(frame.ego_pose)))
        tap('timestamp_s', torch.tensor([frame.timestamp_s], dtype=torch.float64))
        tap('prev_exists', torch.tensor([0.0 if was_empty else 1.0]))
        return StepResult(tensors, boxes_of_result(results[0]['img_bbox']), was_reset)

    def _first_scores(self, logits: torch.Tensor | None, was_reset: bool) -> np.ndarray:
        """Return the scores (1, A) by which rows are this frame's own instances, best first; NaN for others.

        `logits` (1, A, K) are those of the refinement before the kept instances come in.
        """
        scores = np.full((1, self.bank.num_anchor), np.nan)
        if not was_reset:
            best = _array(logits.max(-1).values.double().sigmoid())[0]
            num_temp = self.bank.num_temp_instances
            scores[0, num_temp:] = -np.sort(-best)[: len(best) - num_temp]
        return scores

    def _moment(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, Any]:
        """Return time and pose as the bank takes them."""
        pose = np.array(ego_pose, np.float64)
        time = torch.tensor([timestamp_s], dtype=torch.float64, device=self.device)
        return dict(timestamp=time, img_metas=[dict(T_global=pose, T_global_inv=np.linalg.inv(pose))])


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def boxes_of_result(result: Mapping[str, torch.Tensor]) -> InstanceBoxes:
    """Return the boxes of a result of upstream's coder, best first; their z is that of the bottom.

    Its `boxes_3d` are (n, 10) with z of the centre, vz last, which is left out; `scores_3d`, `labels_3d`,
    `instance_ids` and `cls_scores` are (n,).
    """
    boxes = _array(result['boxes_3d'])[:, :9].astype(np.float32)
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    scores, labels, ids, class_scores = (
        _array(result[name]) for name in ('scores_3d', 'labels_3d', 'instance_ids', 'cls_scores')
    )
    return InstanceBoxes(boxes, scores, labels.astype(np.int64), ids.astype(np.int64), class_scores)
