"""Facts of BEVDet and BEVDet4D, which their files keep."""

import dataclasses

from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts
from mmdeploy_ext.families.common.runtime.lift_splat import LiftFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevDetFacts(LiftFacts, CenterBoxFacts):
    """The settings of the view and of the boxes; `adjacent` frames before the present one count, or 0."""

    adjacent: int
