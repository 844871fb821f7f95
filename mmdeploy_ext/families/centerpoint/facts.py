"""Facts of CenterPoint."""

import dataclasses
from typing import Literal

from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts
from mmdeploy_ext.spec.facts import optional

NMS_TYPES = ('rotate', 'circle')
"""Supported values of `nms_type` of mmdet3d's `test_cfg`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterPointFacts(CenterBoxFacts):
    """The settings that turn the head's outputs into boxes; `points` is 'pillars' for such a backbone."""

    points: Literal['pillars'] | None = optional()
