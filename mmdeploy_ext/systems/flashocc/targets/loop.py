"""Files of FlashOcc's TensorRT converter as streams, their plug-in in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.systems.flashocc.runtime import LABELS, LOGITS, FlashOccOnnx
from mmdeploy_ext.targets.plugins.bev_intervals import PoolLoop

if TYPE_CHECKING:
    import numpy as np

    from mmdeploy_ext.runtime.frames import Frame, StreamState


class PooledOnnx(PoolLoop, FlashOccOnnx):
    """A file with `output_0`, logits, or `cls_occ_label`, classes."""

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        ((name, output),) = super().run(frame, memory).items()
        return {LOGITS: output} if name == 'output_0' else {LABELS: output[0]}
