"""Sparse LiDAR backbones alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.kinds.base import Kind
from mmdeploy_ext.kinds.sequence_samples import SequenceSamples
from mmdeploy_ext.proving.inputs.samples import ChosenSamples
from mmdeploy_ext.util.errors import after_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.samples import Samples
    from mmdeploy_ext.proving.verdict import Verdict


class BackboneSamples(SequenceSamples):
    """Voxels of the user's sweeps; a proof has generated ones besides."""

    def of(self, detector: Detector) -> ChosenSamples:
        from mmdeploy_ext.proving.inputs.voxel_sets import sweep_sets

        rule, cfg, settings = detector.rule, detector.cfg, detector.settings
        with after_weights():
            sets = [sweep_sets(path, rule, cfg, settings, self.count) for path in self.paths]
        return ChosenSamples([*itertools.chain(*sets)])


class Backbones(Kind):
    name = 'backbone'

    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        return BackboneSamples(detector.family, paths, frames, option)

    def prove(
        self,
        detector: Detector,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
        claims: Claims,
    ) -> Verdict:
        from mmdeploy_ext.proving.backbone import prove_backbone

        return prove_backbone(detector, paths, list(samples), engine, claims, **claims.settings)
