"""Sparse4D as a stream: images, calibration, pose and time in, boxes with track ids out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.common.runtime.instances import COLUMNS, InstanceBoxes, InstanceStream, decode
from mm2onnx_driving.sparse4d import memory as bank
from mm2onnx_driving.sparse4d.memory import TemporalInputs
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.spec.metadata import Metadata


# ---- facts that the files keep


@dataclasses.dataclass(frozen=True)
class Sparse4DFacts(Facts):
    """Facts of a Sparse4D.

    Attributes:
        max_num: most boxes of a frame.
        score_threshold: least class score, without centerness, of a box and of a new id; None: no limit.
        num_instances, num_temp: instances of a frame, and instances that are handed on.
        confidence_decay: factor of a confidence of the last frame.
        default_time_interval: seconds; the interval without a last frame, of 0, or above `max_time_interval`.
        max_time_interval: seconds, in either direction.
    """

    max_num: Count
    score_threshold: float | None
    num_classes: Count
    num_instances: Count
    num_temp: Count
    confidence_decay: Fraction
    default_time_interval: Positive
    max_time_interval: Positive


# ---- stream

FORM = 'sparse4d'
PREDICTIONS = ('pred_instance_feature', 'pred_anchor', 'pred_class_score', 'pred_quality_score')


class Sparse4DOnnx(InstanceStream):
    families, files = ('sparse4d',), (FORM,)

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        facts = self.metadata.postprocess
        inputs = bank.temporal_inputs(facts, self.channels, memory, frame)
        outputs = self.infer(frame, inputs)
        ids, confidence = bank.tracked(facts, inputs, memory, outputs['pred_class_score'])
        return dict(outputs, instance_id=ids, confidence=confidence)

    def infer(self, frame: Frame, inputs: TemporalInputs) -> dict[str, np.ndarray]:
        feeds = dict(
            img=frame.images,
            lidar2img=frame.lidar2img.astype(np.float32),
            time_interval=inputs.time_interval,
            temp_instance_feature=inputs.feature,
            temp_anchor=inputs.anchor,
            mask=inputs.mask,
            has_temp=np.float32([inputs.exists]),
        )
        return self.graphs[FORM].run(feeds)

    @property
    def channels(self) -> int:
        return int(self.graphs[self.files[-1]].spec.tensor('pred_instance_feature').axes[-1])

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        rows = (outputs[name] for name in (*PREDICTIONS[:2], 'instance_id', 'confidence'))
        return bank.next_bank(self.metadata.postprocess, memory, *rows)

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = self.metadata.postprocess.num_temp
        return dict(
            cached_feature=(1, rows, self.channels),
            cached_anchor=(1, rows, COLUMNS),
            confidence=(1, rows),
            instance_id=(1, rows),
            prev_id=(1,),
        )


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> InstanceBoxes:
    _, anchor, logits, quality = (outputs.get(name) for name in PREDICTIONS)
    rows = np.arange(logits.shape[1])[None]
    return decode(logits, anchor, quality, metadata.postprocess, outputs.get('instance_id', rows))


QUANTISED = FORM
OPENS = Sparse4DOnnx
