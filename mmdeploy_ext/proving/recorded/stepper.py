"""A model of frames or sweeps whose results are recorded ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.proving.recorded.calls import around

if TYPE_CHECKING:
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.frames import StepResult, StreamState


class RecordedStepper:
    """A reference with the tensors of the model here, and the results of `detector.recording`."""

    def __init__(self, detector: Detector, reference: Any) -> None:
        self.detector, self.reference = detector, reference

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reference, name)

    @property
    def state(self) -> StreamState | None:
        return self.reference.state

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reference.state = state

    def step(self, sample: Any) -> StepResult:
        with around(self.detector, sample.name or 'sample'):
            return self.reference.step(sample)
