"""Models of single pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.kinds.base import Kind
from mmdeploy_ext.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.samples import Samples
    from mmdeploy_ext.proving.verdict import Verdict


class Images(Kind):
    name = 'images'
    public_samples = (str(DEFAULT_PICTURE),)

    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        from mmdeploy_ext.proving.inputs.samples import PictureSamples

        return PictureSamples(detector, paths, traced)

    def prove(
        self,
        detector: Detector,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
        claims: Claims,
    ) -> Verdict:
        from mmdeploy_ext.proving.pictures import prove_pictures

        return prove_pictures(detector, paths, list(samples), engine, claims, **claims.settings)
