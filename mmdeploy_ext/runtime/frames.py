"""Inputs, outputs and state of streaming and LiDAR models. Needs numpy only.

N cameras, H, W network input in pixels, P points of D values, L decoder layers, Q queries, K classes, n rows
of the memory, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmdeploy_ext.base.errors import DataError, ShapeError

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of all cameras; a data set may lack pose, time and scene.

    Attributes:
        images: (N, 3, H, W) float32, normalised.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of the network input times depth.
        intrinsics: (N, 4, 4) float64 of the network input; unit matrices if unknown.
        ego_pose: (4, 4) float64, LiDAR frame to global frame.
        timestamp_s: absolute seconds.
        scene_token: a change means a new scene; None: unknown.
        name: for display and file names.
        image_files: path per camera to draw into, '' if missing; or ().
        ego_pose_inv: (4, 4) float64 inverse of the data set, or None.
        can_bus: (18,) float64 record of motion, see `runtime.bev_motion`; None: from the pose.
        camera_times_s: (N,) float64 absolute seconds; None: all `timestamp_s`.
        command: (3,) float64, 1 for the driver's one of right, left, straight on; or None.
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
    command: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One revolution of a LiDAR.

    Attributes:
        points: (P, D) float32: x, y, z in metres, LiDAR frame, then the sensor's values.
        name: for display and file names.
        scene_token, timestamp_s: scene, absolute seconds; unused without a memory.
    """

    points: np.ndarray
    name: str = ''
    scene_token: str = ''
    timestamp_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class FusedFrame(Sweep):
    """One moment of all cameras and LiDAR; points are (0, D) without LiDAR.

    Attributes:
        images: (N, 3, H, W) float32, normalised; None without cameras.
        calibration: float32 `runtime.calibration.MATRICES`: `camera_intrinsics`, `camera2lidar`,
            `lidar2image`, `img_aug_matrix` (N, 4, 4), `lidar_aug_matrix` (4, 4); MVX-Net: the last three; {}
            without cameras.
        image_files: path per camera to draw into, '' if missing; or ().
    """

    images: np.ndarray | None = None
    calibration: Arrays = dataclasses.field(default_factory=dict)
    image_files: tuple[str, ...] = ()

    @property
    def lidar2img(self) -> np.ndarray:
        """(N, 4, 4) float64, frame of the points to network pixels times depth; KeyError without cameras."""
        names = 'img_aug_matrix', 'lidar2image', 'lidar_aug_matrix'
        img_aug, lidar2image, lidar_aug = (np.asarray(self.calibration[name], np.float64) for name in names)
        return of_rays(img_aug) @ lidar2image @ np.linalg.inv(lidar_aug)


@dataclasses.dataclass(frozen=True)
class StreamState:
    """The memory after a frame.

    Attributes:
        tensors: StreamPETR, in the frame's LiDAR frame: `embedding` (1, n, C), `reference_point` (1, n, 3) m,
            `timestamp` (1, n, 1) age in s, `egopose` (1, n, 4, 4), `velo` (1, n, 2) m/s; float32. Other
            models have other tensors.
        ego_pose: (4, 4) float64, LiDAR to global; None (PETR: unit matrix) if unused.
        timestamp_s: absolute seconds; None (PETR: 0) if unused.
        scene_token: '' if unknown.
    """

    tensors: dict[str, np.ndarray]
    ego_pose: np.ndarray
    timestamp_s: float
    scene_token: str


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        outputs: of the contract; StreamPETR: `all_cls_scores` (L, 1, Q, K) logits, `all_bbox_preds` (L, 1, Q,
            10). The PyTorch reference adds `outs_dec` and the memory.
        detections: decoded from them.
        was_reset: the frame had an empty memory; for Sparse4D also after a gap above `max_time_interval`.
        undecided: decisions of PyTorch so near to a threshold that rounding may change them.
    """

    outputs: dict[str, np.ndarray]
    detections: Detections3D
    was_reset: bool = False
    undecided: int = 0


class Stepper(Protocol):
    """A streaming or LiDAR model on any engine, one frame at a time."""

    state: StreamState | None
    """Memory after the last frame; assign one to continue from it, None to empty it."""

    def reset(self) -> None:
        """Empty the memory."""

    def step(self, frame: Frame | Sweep) -> StepResult:
        """Run one frame and keep the memory.

        Takes a `Sweep` (LiDAR), `FusedFrame` (BEVFusion, MVX-Net) or `Frame`. A change of `scene_token`
        empties the memory (Sparse4D: only with the repair `scene`), a gap of time only with a runtime's
        `max_gap_s`.
        """


def of_rays(img_aug_matrix: np.ndarray) -> np.ndarray:
    """`img_aug_matrix` (N, 4, 4) for pixels multiplied by depth, float64.

    The argument maps (u, v, depth, 1), the result (u depth, v depth, depth, 1); its first two rows' third
    column counts as 0.
    """
    matrix = np.array(img_aug_matrix, np.float64)
    matrix[:, :2, 2] = matrix[:, :2, 3]
    matrix[:, :2, 3] = 0.0
    return matrix


def check_matrix(calibration: Arrays, key: str, shape: tuple[int, ...], name: str) -> None:
    if key not in calibration:
        raise DataError(f'{name}: the calibration has no {key}')
    matrix = calibration[key]
    if matrix.shape != shape:
        raise ShapeError(f'{name}: {key} is of shape {matrix.shape}, expected {shape}')
    if not np.isfinite(matrix).all():
        raise DataError(f'{name}: {key} has NaN or infinity; correct the calibration')
