"""Detectors that lift pictures into a bird's-eye view in PyTorch: the detector's own `forward`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import Tensor, nn

from mm2onnx_driving.common.camera_reference import CameraReference
from mm2onnx_driving.common.lift_graphs import view_facts
from mm2onnx_driving.common.runtime.lift_splat import BORDER, border_points, frustum_places
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.preparation import MultiViewRule

PLACED_BY = 'get_ego_coor', 'get_lidar_coor'
"""Upstream's methods that place lifted points."""


class LiftReference(CameraReference):
    """One frame of `img_inputs`, and no memory."""

    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.view_facts = view_facts(model)
        self._at_borders: dict[bytes, int] = {}
        super().__init__(model, notes)

    @property
    def notes(self) -> list[str]:
        if not any(self._at_borders.values()):
            return super().notes
        return [
            *super().notes,
            f'up to {max(self._at_borders.values())} lifted points of a frame are within {BORDER:g} cells '
            f"of a cell's border: here PyTorch places them in float64; in float32 it may take the "
            f'neighbouring cell',
        ]

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, (0.5, 0.5, 0.5))

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'forward')])

    def further_taps(self, frame: Frame) -> contextlib.AbstractContextManager[None]:
        return placed_in_float64(self.model.img_view_transformer)

    def forget(self) -> None:
        pass

    def memory(self) -> dict[str, np.ndarray]:
        return {}

    def remember(self, state: StreamState) -> None:
        pass

    def calibration_of(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return camera to key ego (N, 4, 4), intrinsics (N, 3, 3), and post_rots and post_trans."""
        poses, count = sensor_poses(frame), len(frame.images)
        crop = self.model.rule.crop_matrix().astype(np.float64)
        post_rot, post_tran = np.eye(3), np.array([*crop[:2, 2], 0.0])
        post_rot[:2, :2] = crop[:2, :2]
        intrinsics = np.linalg.solve(crop, frame.intrinsics[:, :3, :3])
        self.count_border_points(poses, intrinsics, crop)
        return poses, intrinsics, [np.stack([matrix] * count) for matrix in (post_rot, post_tran)]

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        poses, intrinsics, shared = self.calibration_of(frame)
        unit = np.tile(np.eye(4), (len(frame.images), 1, 1))
        inputs = (frame.images, poses, unit, intrinsics, *shared, np.eye(3))
        return self.call_of(frame, [self.tensor(value)[None] for value in inputs])

    def call_of(self, frame: Frame, img_inputs: Sequence[Any], **how: Any) -> dict[str, Any]:
        meta = dict(self.meta_of(frame), box_type_3d=LiDARInstance3DBoxes)
        return dict(return_loss=False, points=None, img_metas=[[meta]], img_inputs=[[*img_inputs]], **how)

    def count_border_points(self, poses: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray) -> None:
        rig = poses.tobytes() + intrinsics.tobytes()
        if rig not in self._at_borders:
            points = frustum_places(self.view_facts, poses, intrinsics, crop)
            self._at_borders[rig] = int(border_points(self.view_facts, points).sum())


@contextlib.contextmanager
def placed_in_float64(transformer: nn.Module) -> Iterator[None]:
    """Inside the block upstream's methods place lifted points in float64, rounded once, as the graph does.

    A cell is chosen by the place: in float32 the rounding of an engine would decide at a border.
    """

    def in_float64(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *matrices: method(*(matrix.double() for matrix in matrices)).float()

    with contextlib.ExitStack() as stack:
        for name in PLACED_BY:
            if hasattr(transformer, name):
                method = in_float64(getattr(transformer, name))
                stack.enter_context(replaced_entry(vars(transformer), name, method))
        yield


def sensor_poses(frame: Frame) -> np.ndarray:
    """Return camera to key ego (N, 4, 4) float64, by another product than the runtime."""
    return np.linalg.inv(np.asarray(frame.lidar2img, np.float64)) @ frame.intrinsics
