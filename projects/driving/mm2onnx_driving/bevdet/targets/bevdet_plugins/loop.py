"""A file of BEVDet's TensorRT converter as a stream, its plug-in in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2onnx_driving.bevdet.runtime import BevDetOnnx
from mm2onnx_driving.plugins.bev_intervals import PoolLoop

if TYPE_CHECKING:
    import numpy as np

    from mmdeploy_ext.runtime.frames import Frame, StreamState


class PoolOnnx(PoolLoop, BevDetOnnx):
    """The file with the plug-in."""

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        outputs = super().run(frame, memory)
        names = self.metadata.postprocess.output_names
        return dict(zip(names, outputs.values(), strict=True))
