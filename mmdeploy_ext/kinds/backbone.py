"""Sparse LiDAR backbones alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.kinds.base import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.verdict import Verdict


class Backbones(Kind):
    name = 'backbone'

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
