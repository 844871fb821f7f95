"""Frames of a data set's infos as inputs of a model of cameras, and where their scenes begin. No torch.

Glossary: N cameras, h, w pixels of a picture as taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.runtime.exported import Runtime
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import read_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.preprocess.cameras import MultiViewRule
    from mmdeploy_ext.runtime.infos import RigFrame


class CameraRuntime(Runtime):
    """An exported model of cameras that takes the frames of infos as they are."""

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Frame:
        """Return a frame of a data set's infos as `step` takes it; see `frame_of_rig`."""
        return frame_of_rig(images_bgr, rig, self.rule)


def frame_of_rig(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Return a frame of `read_frames` with its N pictures (h, w, 3) uint8 as inputs of the model.

    Raises:
        ShapeError: wrong number or size of pictures.
        DataError: an invalid calibration.
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


def is_another_scene(last_token: str, token: str | None) -> bool:
    """Return whether a frame's scene is another one than that of the last frame.

    `last_token` is '' if that scene is unknown; a `token` of None leaves the scene as it was.
    """
    return bool(last_token) and token is not None and token != last_token


def moments(cfg: Any, rule: MultiViewRule, infos: Path, root: str | Path | None = None) -> Iterator[Frame]:
    """Yield the frames of infos as `mm2onnx run` prepares them; see `SequenceFamily.moments`.

    `root` is the folder of the data set; None: files are at the paths of the infos, or beside them.
    """
    for rig in read_frames(infos, rule, root):
        yield frame_of_rig(rig.read_pictures(), rig, rule)
