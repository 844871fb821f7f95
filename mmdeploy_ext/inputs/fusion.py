"""How the pictures, the calibration and the points of one moment become the input of cameras and LiDAR."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.inputs.cameras import MultiViewRule
from mmdeploy_ext.inputs.points import VoxelRule

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND = 'fusion'


@dataclasses.dataclass(frozen=True)
class FusionRule(Plain):
    """The rules of both sensors.

    Attributes:
        views: of the pictures; None of a model without cameras.
        voxels: of the points; None of one without LiDAR.
        sweeps: of the past, whose points come after those of the key frame.
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
        matrix = np.eye(4, dtype=np.float32)
        matrix[[0, 1], [0, 1]] = self.views.scale
        matrix[:2, 3] = -self.views.crop[1], -self.views.crop[0]
        return np.tile(matrix, (self.views.num_cameras, 1, 1))
