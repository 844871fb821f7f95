"""Facts of ImVoxelNet."""

import dataclasses

from mmdeploy_ext.families.common.runtime.anchors3d import AnchorRule
from mmdeploy_ext.spec.facts import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImVoxelNetFacts(AnchorRule):
    max_per_img: Count

    @property
    def max_num(self) -> int:
        return self.max_per_img
