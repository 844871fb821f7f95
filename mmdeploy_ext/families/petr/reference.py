"""PETR and PETRv2 in PyTorch as a stepper: the test path of the user's detector or of ours, unpatched."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from mmdeploy_ext.core.errors import DataError, ShapeError
from mmdeploy_ext.core.taps import collect_taps, tap
from mmdeploy_ext.families.parts.camera_reference import CameraReference
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.petr.graphs import frames_of
from mmdeploy_ext.families.petr.runtime import camera_times
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState


def picture_times(frame: Frame) -> np.ndarray:
    """Return the absolute times (N,) of a frame's pictures by other code than `camera_times`.

    That refuses (DataError) what are no times; else a runner with wrong ones would agree with itself.
    """
    camera_times(frame)
    times = frame.timestamp_s if frame.camera_times_s is None else frame.camera_times_s
    return np.zeros(len(frame.images)) + np.asarray(times, np.float64)


class PetrReference(CameraReference):
    """The detector's own test path; of PETRv2 it gets the pictures of the last frame behind the present ones.

    The calibration of the last frame is moved into the present LiDAR frame here, in float64, as upstream's
    converter of infos does. Another scene token begins a scene, as in upstream's data set, and so do None
    after a token and a token after None; a gap does not.
    """

    def __init__(self, model: torch.nn.Module, notes: Sequence[str] = ()) -> None:
        """Keep the detector; `notes` are sentences for the verdict about the contract."""
        self.frames, self._notes = frames_of(model), tuple(notes)
        super().__init__(model)

    def reset(self) -> None:
        """Forget the last frame."""
        self._last: Frame | None = None
        self._maps = np.zeros(0, np.float32)

    @property
    def notes(self) -> list[str]:
        """Notes of the base, and those about the frame before and the contract."""
        notes = super().notes
        if self.frames > 1:
            notes.append(
                'the frame before is the last one that ran; the published evaluation takes sweeps of about '
                '1.25 s before, which no cache of features holds'
            )
        return [*notes, *self._notes]

    @property
    def state(self) -> StreamState | None:
        """What is kept of the last frame, None before the first, as `runtime.memory_of` describes it.

        Its pictures are not in it: DataError if a state is assigned to PETRv2; PETR, which reads
        none, only forgets its last frame.
        """
        if self._last is None:
            return None
        last, tensors = self._last, {}
        if self.frames > 1:
            lidar2img = np.array(last.lidar2img, np.float64)
            tensors = dict(img_feats=self._maps, lidar2img=lidar2img, camera_times_s=picture_times(last))
        pose = np.eye(4) if last.ego_pose is None else np.array(last.ego_pose, np.float64)
        return StreamState(tensors, pose, float(last.timestamp_s or 0.0), last.scene_token or '')

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is not None and self.frames > 1:
            raise DataError(
                'PETRv2 in PyTorch takes the pictures of the frame before, which a state does not have; run '
                'that frame instead'
            )

    def step(self, frame: Frame) -> StepResult:
        """Run one prepared frame through `forward_test`.

        Outputs are `all_cls_scores` and `all_bbox_preds` of the head, and `img_feats` and `pos_embed` of the
        frame.

        DataError: an invalid calibration or time, of PETRv2 also an invalid pose.
        ShapeError: another number of pictures than the model has cameras.
        """
        cameras = self.model.input_sizes[0]
        if len(frame.images) != cameras:
            raise ShapeError(
                f'{frame.name or "frame"}: got {len(frame.images)} pictures, the model has {cameras} '
                f'cameras; state num_cams in the config'
            )
        frame_checks.check_matrices('lidar2img', frame.lidar2img, cameras)
        if self.frames > 1:
            frame_checks.check_pose(frame.ego_pose)
            frame_checks.check_time(frame.timestamp_s)
        is_first = self._last is None or self._last.scene_token != frame.scene_token
        count = len(frame.images)
        hooks = {
            self.head.position_encoder: lambda inputs, outputs: dict(pos_embed=outputs[None, :count]),
            self.head: lambda inputs, outputs: dict(
                {name: outputs[name] for name in PREDICTIONS}, img_feats=inputs[0][0][:, :count]
            ),
        }
        with torch.no_grad(), collect_taps() as taps, watching(hooks) as values:
            results = self.model(return_loss=False, rescale=True, **self._data(frame, is_first))
        for name, value in (taps | values | self._inputs(frame, is_first)).items():
            tap(name, value)  # for `collect_taps` around this step
        outputs = {name: value.detach().cpu().numpy().copy() for name, value in values.items()}
        self._last = copy.deepcopy(frame)  # the caller may change its arrays
        self._maps = outputs['img_feats']
        return StepResult(outputs, self.detections(results[0]['pts_bbox']), is_first)

    def _inputs(self, frame: Frame, is_first: bool) -> dict[str, torch.Tensor]:
        """Return what a dump has of a frame, besides the tensors of the model."""
        values = dict(
            img=frame.images,
            lidar2img=frame.lidar2img,
            prev_exists=np.array([0.0 if is_first else 1.0]),
        )
        if frame.ego_pose is not None:
            values['ego_pose'] = frame.ego_pose
        if frame.timestamp_s is not None:
            values |= dict(timestamp_s=np.array([frame.timestamp_s]), camera_times_s=picture_times(frame))
        return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    def _data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        """Return the frame in the form of the test loader: one augmentation of one sample, copied."""
        images, matrices, meta = [frame.images], list(np.array(frame.lidar2img, np.float64)), {}
        if self.frames > 1:
            last = frame if is_first else self._last
            ages = frame.timestamp_s - picture_times(frame)
            earlier = ages + self.model.start_gap_s
            if not is_first:
                earlier = frame.timestamp_s - picture_times(last)
            images.append(last.images)
            matrices += list(last.lidar2img @ np.linalg.inv(last.ego_pose) @ frame.ego_pose)
            meta['timestamp'] = [*ages, *earlier]
        pictures = torch.from_numpy(np.concatenate(images).astype(np.float32)).to(self.device)
        meta |= dict(
            lidar2img=matrices,
            img_shape=[(*self.model.picture_size, 3)] * len(matrices),
            pad_shape=[(*frame.images.shape[2:], 3)] * len(matrices),
            box_type_3d=LiDARInstance3DBoxes,
        )
        return dict(img=[pictures[None]], img_metas=[[meta]])
