"""StreamPETR in PyTorch as a stepper: the detector's own test path, unpatched."""

from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from mmdeploy_ext.core.taps import collect_taps, tap
from mmdeploy_ext.families.parts.camera_reference import CameraReference
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.streampetr.live import memory_of, set_memory, tap_geometry, tapped
from mmdeploy_ext.families.streampetr.runtime.state import FIELDS, to_global, to_local
from mmdeploy_ext.models.streampetr.memory import Memory
from mmdeploy_ext.preprocess.cameras import Calibration
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState


class StreamPetrReference(CameraReference):
    """The detector's own test path; its head keeps the memory in global coordinates.

    Another scene token empties the memory, as in upstream's code; a gap between times does not. Frames need
    a token: None is one like any other, but begins no scene in the first frame.
    """

    @property
    def state(self) -> StreamState | None:
        """The head's global memory, converted in float64 to the last LiDAR frame, see `Stepper.state`."""
        rows = memory_of(self.head)
        if rows is None or self._last is None:
            return None
        memory = {name: tensor.cpu().numpy() for name, tensor in rows._asdict().items()}
        pose, time = self._last.ego_pose, self._last.timestamp_s
        return StreamState(to_local(memory, pose, time), pose, time, self._last.scene_token)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is None:
            return
        memory = to_global(state.tensors, state.ego_pose, state.timestamp_s)
        rows = Memory(*(torch.from_numpy(memory[field]).to(self.device) for field in FIELDS))
        set_memory(self.head, rows)
        self.model.prev_scene_token = state.scene_token
        self._last = state

    def reset(self) -> None:
        """Empty the memory."""
        self.head.reset_memory()
        self.model.prev_scene_token = None
        self._last: StreamState | None = None

    def step(self, frame: Frame) -> StepResult:
        """Run one prepared frame through `forward_test`.

        The outputs are tensors that the model taps: `all_cls_scores` and `all_bbox_preds` of all decoder
        layers, `outs_dec` (1, Q, channels) of the last one alone, and the memory after the frame,
        `post_memory_` and a name of `FIELDS`, as `state` has it; for other shapes see `StepResult`.

        An invalid calibration, `ego_pose` or time raises a DataError as of `StreamPetrOnnx`; `ego_pose_inv`
        is not checked, and a time before that of the last frame raises none here.
        """
        frame_checks.check_calibration(Calibration(frame.lidar2img, frame.intrinsics), len(frame.images))
        frame_checks.check_pose(frame.ego_pose)
        frame_checks.check_time(frame.timestamp_s)
        with torch.no_grad(), collect_taps() as taps, tapped(self.model):
            results = self.model(return_loss=False, rescale=True, **self._data(frame))
            rig = [self._tensor(matrices)[None] for matrices in (frame.lidar2img, frame.intrinsics)]
            tap_geometry(self.model, *rig, self._tensor(frame.images))
        taps.update(zip(('lidar2img', 'intrinsics'), rig, strict=True))
        for name, value in taps.items():
            tap(name, value)  # for `collect_taps` around this step
        self._last = StreamState({}, frame.ego_pose, frame.timestamp_s, frame.scene_token)
        outputs = {name: taps[name].cpu().numpy() for name in ('all_cls_scores', 'all_bbox_preds')}
        outputs['outs_dec'] = taps['out_outs_dec'].cpu().numpy()
        outputs.update((f'post_memory_{name}', rows) for name, rows in self.state.tensors.items())
        return StepResult(outputs, self.detections(results[0]['pts_bbox']), not float(taps['prev_exists']))

    def _data(self, frame: Frame) -> dict[str, Any]:
        """Return the frame in the form of the test loader: one augmentation of one sample."""
        inverse = frame.ego_pose_inv
        if inverse is None:
            inverse = np.linalg.inv(np.asarray(frame.ego_pose, np.float64))
        matrices = dict(
            lidar2img=frame.lidar2img,
            intrinsics=frame.intrinsics,
            ego_pose=frame.ego_pose,
            ego_pose_inv=inverse,
        )
        data = {key: [[self._tensor(value)]] for key, value in matrices.items()}
        data['timestamp'] = [[torch.tensor(frame.timestamp_s, dtype=torch.float64, device=self.device)]]
        shapes = [(*frame.images.shape[2:], 3)] * len(frame.images)
        meta = dict(scene_token=frame.scene_token, box_type_3d=LiDARInstance3DBoxes)
        meta |= dict(pad_shape=shapes, img_shape=shapes)
        return dict(data, img=[self._tensor(frame.images)[None]], img_metas=[[meta]])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)
