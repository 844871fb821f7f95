"""Occupancy detectors. Source: Yzichen/FlashOCC 4084861, detectors/bevdet_occ.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.models import DETECTORS
from mmdet3d.models import builder
from torch import Tensor

from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.lift_splat.detector import OWN, LiftSplatDetector


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDetOCC(LiftSplatDetector):
    """BEVDet with an occupancy head."""

    def __init__(self, occ_head: Mapping[str, Any], **config: Any) -> None:
        super().__init__(**config)
        self.occ_head = builder.build_head(occ_head)

    def results_of(self, maps: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        return self.occ_head.get_occ(self.occ_head(maps[0]), img_metas)


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDepthOCC(BEVDetOCC):
    """The detector with a camera-aware depth network."""
