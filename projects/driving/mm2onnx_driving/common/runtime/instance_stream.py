"""Streams of instances: the time since the last frame decides, and no scene, whether the memory is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.streams import StreamRuntime

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame, StreamState


def gap_s(memory: StreamState, timestamp_s: float) -> np.float32:
    """Return the seconds since the last frame, maybe negative."""
    return np.float32(timestamp_s - memory.timestamp_s)


def is_near(facts: Any, memory: StreamState | None, timestamp_s: float) -> bool:
    """Whether there is a last frame, at most `facts.max_time_interval` s away."""
    return memory is not None and bool(abs(gap_s(memory, timestamp_s)) <= facts.max_time_interval)


def time_interval(facts: Any, memory: StreamState | None, timestamp_s: float) -> np.ndarray:
    """Return the seconds (1,) float32 since the last frame, or the default without a near one, or if 0."""
    gap = gap_s(memory, timestamp_s) if is_near(facts, memory, timestamp_s) else 0
    return np.float32([gap if gap != 0 else facts.default_time_interval])


class InstanceStream(StreamRuntime):
    reads = ('lidar2img', 'ego_pose', 'timestamp_s')

    def begins_scene(
        self, last: StreamState | None, timestamp_s: float | None, scene_token: str | None
    ) -> bool:
        return last is None

    def starts_anew(self, frame: Frame, memory: StreamState | None) -> bool:
        return not is_near(self.metadata.postprocess, memory, frame.timestamp_s)
