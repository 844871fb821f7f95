"""The frames of families of several cameras."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mm2onnx_driving.common.camera_samples import dumped_frame, loaded_frame
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.runtime.streams import frame_of_rig
from mmdeploy_ext.spec.preparation import MultiViewRule


class CameraData(SequenceData):
    """Frames of several cameras on a drive.

    Attributes:
        needed: fields of a `Frame` that samples and dumps must have.
        frame_of: makes a frame of pictures, infos and a rule; None: `frame_of_rig`.
    """

    compared = PREDICTIONS
    needed: ClassVar[tuple[str, ...]] = ()
    frame_of: ClassVar[Callable[..., Frame] | None] = None

    def frame(self, data: Mapping[str, Any]) -> Frame:
        return loaded_frame(data, self.needed)

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame:
        return dumped_frame(tensors, manifest, self.needed)

    def moments(
        self, cfg: Any, rule: MultiViewRule, infos: Path, root: str | Path | None = None
    ) -> Iterator[Frame]:
        frame_of = self.frame_of or frame_of_rig
        for rig in read_frames(infos, rule, root):
            yield frame_of(rig.read_pictures(), rig, rule)
