"""Models of frames and sweeps, with or without a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.kinds.base import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.samples import Samples
    from mmdeploy_ext.proving.verdict import Verdict


class Sequences(Kind):
    name = 'sequence'

    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        from mmdeploy_ext.kinds.sequence_samples import SequenceSamples

        return SequenceSamples(detector.family, paths, frames, option)

    def prove(
        self,
        detector: Detector,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
        claims: Claims,
    ) -> Verdict:
        from mmdeploy_ext.proving.drive import prove_frames
        from mmdeploy_ext.proving.frames import prove_sweeps

        prove = prove_frames if detector.family.memory else prove_sweeps
        return prove(detector, paths, samples, engine, claims, **claims.settings)
