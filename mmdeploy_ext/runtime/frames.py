"""Inputs and outputs of a streaming or LiDAR model per frame, and the state between frames. Needs numpy only.

Glossary: N cameras, H, W network input in pixels, P points, D values of a point, L decoder layers, Q queries,
K classes, n rows of the memory, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmdeploy_ext.core.errors import DataError, ShapeError

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of all cameras, prepared for the network.

    Attributes:
        images: (N, 3, H, W) float32, normalised.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of the network input times depth.
        intrinsics: (N, 4, 4) float64 of the network input; unit matrices stand for unknown ones, which some
            models do not read.
        ego_pose: (4, 4) float64, LiDAR frame to global frame (upstream's misleading name).
        timestamp_s: seconds, absolute.
        scene_token: a change means a new scene; None: unknown.
        name: name of the frame, for display and for file names.
        image_files: one path per camera, to draw into, '' if its file is missing; empty when none are known.
        ego_pose_inv: (4, 4) float64, the inverse as the data set has it; None: it is computed.
        can_bus: (18,) float64, a record of the car's motion as `runtime.bev_motion` describes
            it; None: there is none, and models that need one derive it from the pose.
        camera_times_s: (N,) float64, absolute seconds at which each camera took its picture; None: all at
            `timestamp_s`.

    A data set may lack pose, time and scene, which are None then; models that need them raise DataError.
    """

    images: np.ndarray
    lidar2img: np.ndarray
    intrinsics: np.ndarray
    ego_pose: np.ndarray
    timestamp_s: float
    scene_token: str | None
    name: str = ''
    image_files: tuple[str, ...] = ()
    ego_pose_inv: np.ndarray | None = None
    can_bus: np.ndarray | None = None
    camera_times_s: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One revolution of a LiDAR: the frame of a model without cameras and without a memory.

    Attributes:
        points: (P, D) float32: x, y, z in metres in the LiDAR frame, then other values of the sensor.
        name: name of the sweep, for display and for file names.
        scene_token, timestamp_s: scene, and seconds, absolute; a model without a memory reads neither.
    """

    points: np.ndarray
    name: str = ''
    scene_token: str = ''
    timestamp_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class FusedFrame(Sweep):
    """One moment of all cameras and of the LiDAR; a model without LiDAR gets no points, (0, D).

    Attributes:
        images: (N, 3, H, W) float32, normalised; None for a model without cameras.
        calibration: float32 `camera_intrinsics`, `camera2lidar`, `lidar2image`, `img_aug_matrix` (N, 4, 4),
            `lidar_aug_matrix` (4, 4): camera to picture as it was taken, camera to LiDAR, LiDAR to picture as
            it was taken, that picture to the network's, and LiDAR to the frame that the points are in. Of
            MVX-Net it is the last three, of a model without cameras empty.
        image_files: one path per camera, to draw into, '' if its file is missing; empty when none are known.
    """

    images: np.ndarray | None = None
    calibration: Arrays = dataclasses.field(default_factory=dict)
    image_files: tuple[str, ...] = ()

    @property
    def lidar2img(self) -> np.ndarray:
        """(N, 4, 4) float64: the frame that the points are in, to pixels of the network input times depth.

        KeyError: the calibration lacks a matrix, as that of a model without cameras does.
        """
        names = 'img_aug_matrix', 'lidar2image', 'lidar_aug_matrix'
        img_aug, lidar2image, lidar_aug = (np.asarray(self.calibration[name], np.float64) for name in names)
        return of_rays(img_aug) @ lidar2image @ np.linalg.inv(lidar_aug)


@dataclasses.dataclass(frozen=True)
class StreamState:
    """The memory after a frame; of StreamPETR in the LiDAR frame of it, with ages counted from it.

    Attributes:
        tensors: of StreamPETR `embedding` (1, n, C), `reference_point` (1, n, 3) m, `timestamp` (1, n, 1) age
            in s, 0 or more, `egopose` (1, n, 4, 4), `velo` (1, n, 2) m/s; float32. The `state` of other
            models has other ones, some of them in the map or in absolute seconds.
        ego_pose: (4, 4) float64 of that frame, LiDAR to global. For a frame without one, which a model that
            needs none takes, it is None, of PETR the unit matrix.
        timestamp_s: seconds, absolute, of that frame; likewise None, of PETR 0.
        scene_token: token of the scene of that frame; '' if no frame has named one.
    """

    tensors: dict[str, np.ndarray]
    ego_pose: np.ndarray
    timestamp_s: float
    scene_token: str


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        outputs: by the names of the contract; of StreamPETR `all_cls_scores` (L, 1, Q, K) logits,
            `all_bbox_preds` (L, 1, Q, 10); the reference in PyTorch adds `outs_dec` and the memory after the
            frame.
        detections: decoded from them.
        was_reset: this frame was run as a first one: the memory was empty, or `Stepper.step` emptied it; of
            Sparse4D also after a gap of more than `max_time_interval`, with which the memory stays. False of
            models of sweeps and of `FusedFrame`, which have no memory.
    """

    outputs: dict[str, np.ndarray]
    detections: Detections3D
    was_reset: bool = False


class Stepper(Protocol):
    """A streaming or LiDAR model on any engine: state in, state out, one frame at a time."""

    state: StreamState | None
    """The memory after the last frame; assigning one continues from it, None is an empty memory, and always
    that of a model of sweeps or of `FusedFrame`. PETR, which reads none either, has pose and time in it."""

    def reset(self) -> None:
        """Empty the memory."""

    def step(self, frame: Frame | Sweep) -> StepResult:
        """Run one frame and keep the memory for the next.

        LiDAR models take a `Sweep`, BEVFusion (also of cameras alone) and MVX-Net a `FusedFrame`, others a
        `Frame`. A change of `scene_token` empties the memory first, but that of Sparse4D only in a runtime
        with the repair `scene`. A gap of time does so only in a runtime with `max_gap_s`, never in a
        reference in PyTorch.
        """


def of_rays(img_aug_matrix: np.ndarray) -> np.ndarray:
    """Return `img_aug_matrix` (N, 4, 4), which moves pixels, for pixels that are multiplied by their depth.

    The argument, see `FusedFrame`, is applied to (u, v, depth, 1), the result (N, 4, 4) float64 to (u depth,
    v depth, depth, 1). The depth has no share in the argument's pixels: the third column of its first two
    rows is taken for 0.
    """
    matrix = np.array(img_aug_matrix, np.float64)
    matrix[:, :2, 2] = matrix[:, :2, 3]
    matrix[:, :2, 3] = 0.0
    return matrix


def check_matrix(calibration: Arrays, key: str, shape: tuple[int, ...], name: str) -> None:
    """Refuse a calibration, see `FusedFrame`, without a matrix of finite numbers in a shape.

    Args:
        calibration: name -> matrix.
        key: name of the matrix.
        shape: its shape.
        name: name of the frame, for messages.

    Raises:
        DataError: the matrix is missing, or holds NaN or infinity.
        ShapeError: it has another shape.
    """
    if key not in calibration:
        raise DataError(f'{name}: the calibration has no {key}')
    matrix = calibration[key]
    if matrix.shape != shape:
        raise ShapeError(f'{name}: {key} is of shape {matrix.shape}, expected {shape}')
    if not np.isfinite(matrix).all():
        raise DataError(f'{name}: {key} holds NaN or infinity; mend the calibration')
