"""Frames of a data set's infos as inputs of a model of cameras, and where their scenes begin. No torch.

Glossary: N cameras, h, w pixels of a picture as taken.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import InferenceError
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.exported import Runtime, check_finite
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import read_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.preprocess.cameras import Calibration, MultiViewRule
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import StreamState
    from mmdeploy_ext.runtime.infos import RigFrame

logger = logging.getLogger(__name__)


class CameraRuntime(Runtime):
    """An exported model of cameras.

    A new scene empties the memory, unless the published model goes on with it: subclasses decide that.

    Attributes:
        image_shape: (N, 3, H, W) of prepared images; set by the model.
        max_gap_s: a longer gap between two frames begins a scene, see `begins_scene`; None never does.
        was_reset: whether the last frame that gave boxes had no frame before that counted for it.
    """

    image_shape: tuple[int, ...]
    max_gap_s: float | None = None
    was_reset = False

    @property
    def num_cameras(self) -> int:
        """N."""
        return self.image_shape[0]

    def detect(
        self,
        images_bgr: Sequence[np.ndarray],
        calibration: Calibration | None,
        ego_pose: np.ndarray,
        timestamp_s: float,
        scene_token: str | None = None,
        camera_times_s: np.ndarray | None = None,
    ) -> Detections3D:
        """Return the boxes in the images of one moment, in its LiDAR frame, best first.

        Args:
            images_bgr: N images (h, w, 3) uint8 as OpenCV reads them, in the order of `rule.cameras`.
            calibration: of `rule.calibrate`; give the same object or equal numbers while the rig is the same.
                None is refused (DataError).
            ego_pose: (4, 4) float64, LiDAR frame to a global frame.
            timestamp_s: seconds, absolute or from any fixed point.
            scene_token: a change means a new scene; None leaves the scene as it was.
            camera_times_s: (N,) of the pictures, like `timestamp_s`; None: all at that time.

        Raises:
            ShapeError: images of another number or size.
            DataError: a calibration, pose or time that the model reads is missing or no valid one.
            InferenceError: the engine failed or gave NaN.
        """
        images, (lidar2img, intrinsics) = self.rule.apply(images_bgr), calibration or (None, None)
        frame = Frame(
            images,
            lidar2img,
            intrinsics,
            ego_pose,
            timestamp_s,
            scene_token,
            camera_times_s=camera_times_s,
        )
        return self.step(frame).detections

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the outputs of a frame, name -> array, by the family's runtime, best first."""
        return runtime_of(self.metadata.family).boxes_of_outputs(self.metadata, outputs)

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Frame:
        """Return a frame of a data set's infos as `step` takes it; see `frame_of_rig`.

        `root`, the folder of the data set, is not used: everything is in `images_bgr` and `rig`.
        """
        return frame_of_rig(images_bgr, rig, self.rule)

    def begins_scene(self, last: StreamState | None, timestamp_s: float, scene_token: str | None) -> bool:
        """Return whether a frame begins a scene; a change of scene and a gap are logged.

        Args:
            last: the memory of the frame before; None if there is none.
            timestamp_s: of the frame, seconds; not read if there is no `max_gap_s`.
            scene_token: of the frame; None leaves the scene as it was, and so does any token after a frame
                without one.
        """
        if last is None:
            return True
        if scene_token is not None and last.scene_token and scene_token != last.scene_token:
            logger.info('memory reset: scene changed from %s to %s', last.scene_token, scene_token)
            return True
        if self.max_gap_s is None or timestamp_s - last.timestamp_s <= self.max_gap_s:
            return False
        gap = timestamp_s - last.timestamp_s
        logger.warning('memory reset: %.3f s since the last frame, max_gap_s=%g', gap, self.max_gap_s)
        return True

    def feeds(self, frame: Frame) -> dict[str, np.ndarray]:
        """Return the inputs of the last graph for a prepared frame, which is run and remembered.

        A frame that is not later than the one before begins a drive, as the first of another pass does.
        Frames need a time.
        """
        last = self.state
        if last is not None and frame.timestamp_s <= last.timestamp_s:
            self.reset()
        with record_runs() as runs:
            self.step(frame)
        return runs[-1].inputs

    def check_outputs(self, outputs: Mapping[str, np.ndarray], frame: Frame) -> None:
        """Refuse outputs of a frame that are NaN or infinite, and forget the last frame then.

        Raises:
            InferenceError: it names the frame.
        """
        try:
            check_finite(outputs, frame.name or 'frame')
        except InferenceError:
            self.reset()
            raise


def frame_of_rig(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Return a frame of `read_frames` with its N pictures (h, w, 3) uint8 as inputs of the model.

    Raises:
        ShapeError: wrong number or size of pictures.
        DataError: matrices of the calibration for another number of cameras, or with NaN or infinity; whether
            they can be inverted is for `step` to check.
    """
    calibration = rule.calibrate(rig.intrinsics, rig.lidar2cam)
    images = rule.apply(images_bgr)
    return Frame(
        images,
        *calibration,
        rig.ego_pose,
        rig.timestamp_s,
        rig.scene_token,
        rig.name,
        camera_times_s=rig.camera_times_s,
    )


def scene_of(token: str | None, last: StreamState | None) -> str:
    """Return the scene of a frame with a `token`; None leaves it as it was, '' if it is unknown.

    `last` is the memory of the frame before; None if there is none.
    """
    if token is None:
        return '' if last is None else last.scene_token
    return token


def moments(
    cfg: Any,
    rule: MultiViewRule,
    infos: Path,
    root: str | Path | None = None,
    frame_of: Callable[[Sequence[np.ndarray], RigFrame, MultiViewRule], Frame] | None = None,
) -> Iterator[Frame]:
    """Yield the frames of infos as `mm2onnx run` prepares them: scene by scene, each in the order of time.

    Scenes come in the order of their first infos.

    Args:
        cfg: config of the model, which is not used.
        rule: how pictures are prepared.
        infos: path of the file of infos.
        root: folder of the data set; None: not known. Pictures are looked for at their paths in the infos,
            then below `root`, then below the folder of `infos`.
        frame_of: makes a frame of its pictures; None: `frame_of_rig` does.

    Raises:
        DataError: infos, a picture or a calibration is missing or not valid.
        ImageError: a file is no picture.
        ShapeError: wrong number or size of pictures.
    """
    frame_of = frame_of or frame_of_rig
    for rig in read_frames(infos, rule, root):
        yield frame_of(rig.read_pictures(), rig, rule)
