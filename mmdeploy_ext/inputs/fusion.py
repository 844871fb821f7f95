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
    """Both rules.

    Attributes:
        views: of the pictures.
        voxels: of the points.
    """

    views: MultiViewRule
    voxels: VoxelRule

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; `kind` tells this rule from others."""
        return dict(kind=KIND, views=self.views.to_json(), voxels=self.voxels.to_json())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FusionRule:
        """Rebuild a rule from `to_json`."""
        return cls(MultiViewRule.from_json(content['views']), VoxelRule.from_json(content['voxels']))

    def img_aug_matrix(self) -> np.ndarray:
        """Return (N, 4, 4) float32: pictures as they were taken to the network's, pixels."""
        matrix = np.eye(4, dtype=np.float32)
        matrix[[0, 1], [0, 1]] = self.views.scale
        matrix[:2, 3] = -self.views.crop[1], -self.views.crop[0]
        return np.tile(matrix, (self.views.num_cameras, 1, 1))
