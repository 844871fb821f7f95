"""Facts of BEVDet and BEVDet4D, which their files keep."""

import dataclasses

from mm2onnx_driving.common.runtime.lift_splat import LiftFacts
from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevDetFacts(LiftFacts, CenterBoxFacts):
    """The settings of the view and of the boxes; `adjacent` frames before the present one count, or 0."""

    adjacent: int
