"""FlashOcc as a stream: images and calibration in, a class per voxel out, no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm2onnx_driving.common.runtime.lift_splat import LiftOnnx
from mm2onnx_driving.flashocc.instances import instances_of
from mm2onnx_driving.plugins.bev_intervals import PoolLoop
from mmdeploy_ext.runtime.occupancy import Occupancy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.metadata import Metadata

FORM, LOGITS, LABELS = 'flashocc', 'occ_logits', 'occupancy'
"""Name of the graph, and of its outputs."""


class FlashOccOnnx(LiftOnnx):
    families, files = ('flashocc',), (FORM,)


class PooledOnnx(PoolLoop, FlashOccOnnx):
    """A file of FlashOcc's TensorRT converter, with `output_0`, logits, or `cls_occ_label`, classes."""

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        ((name, output),) = super().run(frame, memory).items()
        return {LOGITS: output} if name == 'output_0' else {LABELS: output[0]}


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Occupancy:
    labels = outputs[LABELS] if LABELS in outputs else outputs[LOGITS][0].argmax(-1)
    occupancy = Occupancy(labels.astype('uint8'), None, len(metadata.classes) - 1)
    if not metadata.postprocess.centers:
        return occupancy
    return occupancy.with_instances(instances_of(labels, outputs, metadata.postprocess.centers))


QUANTISED, OPENS, RESULT = FORM, FlashOccOnnx, Occupancy
