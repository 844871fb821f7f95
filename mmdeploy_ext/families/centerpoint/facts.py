"""Facts of CenterPoint."""

import dataclasses
from typing import Literal

from mmdeploy_ext.contract.facts import optional
from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts

NMS_TYPES = ('rotate', 'circle')
"""Supported values of `nms_type` of mmdet3d's `test_cfg`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterPointFacts(CenterBoxFacts):
    """The settings that turn the head's outputs into boxes; `points` is 'pillars' for such a backbone."""

    points: Literal['pillars'] | None = optional()
