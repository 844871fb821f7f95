"""How the pictures, the calibration and the points of one moment become the input of cameras and LiDAR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.inputs.cameras import MultiViewRule
from mmdeploy_ext.inputs.points import VoxelRule

KIND = 'fusion'


@dataclasses.dataclass(frozen=True)
class FusionRule(Plain):
    """The rules of both sensors, None of one that a model has not.

    `sweeps` of the past come after the points of the key frame.
    """

    views: MultiViewRule | None
    voxels: VoxelRule | None
    sweeps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; `kind` tells this rule from others."""
        both = dict(views=self.views, voxels=self.voxels)
        rules = {name: rule and rule.to_json() for name, rule in both.items()}
        return dict(kind=KIND, **rules, sweeps=self.sweeps)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FusionRule:
        """Rebuild a rule from `to_json`."""
        views, voxels = content['views'], content['voxels']
        rules = views and MultiViewRule.from_json(views), voxels and VoxelRule.from_json(voxels)
        return cls(*rules, content['sweeps'])

    def img_aug_matrix(self) -> np.ndarray:
        """Return (N, 4, 4) float32: pictures as they were taken to the network's, pixels."""
        return np.tile(self.views.crop_matrix(4), (self.views.num_cameras, 1, 1))
