"""Facts of LiDAR detectors with anchors."""

import dataclasses
from typing import Literal

from mmdeploy_ext.families.common.runtime.anchors3d import AnchorRule
from mmdeploy_ext.spec.facts import Count, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorFacts(AnchorRule):
    max_num: Count
    points: Literal['pillars'] | None = optional()
