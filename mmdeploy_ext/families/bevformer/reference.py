"""BEVFormer in PyTorch as a stepper: the test path of the user's detector or of ours, unpatched."""

from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from mmdeploy_ext.consumers.autoware import bevformer as node
from mmdeploy_ext.core.taps import collect_taps, tap
from mmdeploy_ext.families.bevformer.runtime import record_of
from mmdeploy_ext.families.bevformer.samples import given_record
from mmdeploy_ext.families.parts.camera_reference import CameraReference
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.runtime.bev_motion import TIE_CELLS, YAW_DEG, rotation_ties
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

NODE_STEPS = 4
"""Steps of float32 by which a record of Autoware's node may differ from the exact one: it computes the
heading of a rounded quaternion."""
OUTPUTS = ('bev_embed', 'all_cls_scores', 'all_bbox_preds')
"""Outputs of the head that are compared, with the shapes of the graph; the scores are logits."""


def reference_record(frame: Frame, orientation: str = '') -> np.ndarray:
    """Return `given_record` of a frame, if `record_of` does not refuse it.

    By the runner's code a runner with a wrong record would agree with itself. `orientation` is the kind of
    records that the model was trained with, '' any; for it, and the DataError, see `record_of`.
    """
    record_of(frame, orientation)
    return given_record(frame)


class BevFormerReference(CameraReference):
    """The detector's own test path, which keeps the last view in `prev_frame_info`.

    Another scene token empties the memory, as in upstream's code, and so do None after a token and a token
    after None; a gap between times does not.
    """

    def __init__(self, model: torch.nn.Module, as_node: bool = False) -> None:
        """Keep the detector; `as_node`: its records have the float32 numbers of Autoware's node."""
        self.as_node = as_node
        self._ties: dict[str, int] = {}
        super().__init__(model)

    def reset(self) -> None:
        """Empty the memory."""
        self.model.prev_frame_info = dict(prev_bev=None, scene_token=None, prev_pos=0, prev_angle=0)
        self._last: Frame | StreamState | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the verdict has to know: whose boxes, and in which frames a rotation has ties."""
        notes = super().notes
        if self.as_node:
            notes.append("PyTorch's records of the motion are rounded to float32, as the node has them")
        if not self._ties:
            return notes
        frames = ', '.join(f'{count} cells of {name}' for name, count in self._ties.items())
        return [*notes, f'rotation of the last view: {frames} are within {TIE_CELLS:g} cells of a tie']

    @property
    def state(self) -> StreamState | None:
        """View, place and heading (degrees) of the last frame, None before the first; see `Stepper.state`."""
        last_info = self.model.prev_frame_info
        if last_info['prev_bev'] is None or self._last is None:
            return None
        last = self._last
        tensors = dict(
            bev_embed=last_info['prev_bev'].detach().cpu().numpy().copy(),
            position=np.array(last_info['prev_pos'], np.float64),
            heading=np.array([last_info['prev_angle']], np.float64),
        )
        return StreamState(tensors, last.ego_pose, last.timestamp_s, last.scene_token or '')

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is None:
            return
        self.model.prev_frame_info = dict(
            prev_bev=torch.from_numpy(np.array(state.tensors['bev_embed'], np.float32)).to(self.device),
            scene_token=state.scene_token,
            prev_pos=np.array(state.tensors['position']),
            prev_angle=float(state.tensors['heading'][0]),
        )
        self._last = state

    def step(self, frame: Frame) -> StepResult:
        """Run one frame through `forward_test`; outputs are `OUTPUTS` of the head by name.

        DataError: the record of the motion, or the pose that stands for it, see `record_of`.
        """
        last, transformer = self.model.prev_frame_info, self.head.transformer
        was_first = last['prev_bev'] is None or last['scene_token'] != frame.scene_token
        if not was_first and transformer.rotate_prev_bev:  # which has ties, see `notes`
            degrees = self._record(frame)[YAW_DEG] - last['prev_angle']
            size = self.head.bev_h, self.head.bev_w
            if ties := rotation_ties(degrees, transformer.rotate_center, size):
                self._ties[frame.name] = ties
        hooks = {self.head: lambda inputs, outputs: outputs}
        with torch.no_grad(), collect_taps() as taps, watching(hooks) as head_outputs:
            results = self.model(return_loss=False, rescale=True, **self._data(frame))
        taps = dict(taps, can_bus=torch.from_numpy(reference_record(frame)))
        taps['lidar2img'], taps['img'] = (torch.from_numpy(x) for x in (frame.lidar2img, frame.images))
        taps['prev_exists'] = torch.tensor([0.0 if was_first else 1.0])
        taps.update({name: head_outputs[name] for name in OUTPUTS})
        for name, value in taps.items():
            tap(name, value)  # for `collect_taps` around this step
        self._last = frame
        outputs = {name: head_outputs[name].detach().cpu().numpy().copy() for name in OUTPUTS}
        return StepResult(outputs, self.detections(results[0]['pts_bbox']), was_first)

    def _record(self, frame: Frame) -> np.ndarray:
        """Return the record of a frame; with `as_node` the node's numbers, if only rounding differs.

        The node rounds positions and headings to float32, which decides ties of the rotation.
        """
        orientation = self.model.can_bus_orientation
        record = reference_record(frame, orientation)
        if not self.as_node:
            return record
        rounded = node.trained_record(node.absolute(node.motion_of(record, orientation)), orientation)
        steps = np.spacing(np.maximum(np.abs(record), 1).astype(np.float32))
        return np.where(np.abs(rounded - record) <= NODE_STEPS * steps, rounded, record)

    def _data(self, frame: Frame) -> dict[str, Any]:
        """Return the frame in the form of the test loader: one augmentation of one sample, copied."""
        images = torch.from_numpy(np.array(frame.images, np.float32)).to(self.device)[None]
        shapes = [(*frame.images.shape[2:], 3)] * len(frame.images)
        meta = dict(
            scene_token=frame.scene_token,
            can_bus=self._record(frame),
            lidar2img=list(np.array(frame.lidar2img, np.float64)),
            img_shape=shapes,
            pad_shape=shapes,
            box_type_3d=LiDARInstance3DBoxes,
        )
        return dict(img=[images], img_metas=[[meta]])
