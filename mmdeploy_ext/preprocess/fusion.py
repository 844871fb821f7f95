"""How the pictures, the calibration and the points of one moment become the input of cameras and LiDAR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.preprocess.fusion import PastSweeps
from mmdeploy_ext.preprocess.points import VoxelRule

KIND = 'fusion'
POINTS = 'load_dim', 'use_dim', 'sweeps', 'pad_empty_sweeps', 'remove_close'
"""Fields that say how points are read."""


@dataclasses.dataclass(frozen=True)
class FusionRule(Plain):
    """The rules of both sensors, None of one that a model has not.

    Attributes:
        views: of the pictures.
        voxels: of the points.
        load_dim: values per point in a file.
        use_dim: columns that the model takes, after sweeps of the past were merged.
        sweeps: of the past at most, whose points come after those of the key frame; 0 takes none.
        pad_empty_sweeps: where there are none, the points of the key frame stand for each of them.
        remove_close: points of sweeps of the past that are close to the car are left out.
    """

    views: MultiViewRule | None
    voxels: VoxelRule | None
    load_dim: int = 5
    use_dim: tuple[int, ...] = (0, 1, 2, 3, 4)
    sweeps: int = 0
    pad_empty_sweeps: bool = False
    remove_close: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; `kind` tells this rule from others."""
        both = dict(views=self.views, voxels=self.voxels)
        rules = {name: rule and rule.to_json() for name, rule in both.items()}
        return dict(kind=KIND, **rules, **{name: getattr(self, name) for name in POINTS})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FusionRule:
        """Rebuild a rule from `to_json`."""
        views, voxels = content['views'], content['voxels']
        rules = views and MultiViewRule.from_json(views), voxels and VoxelRule.from_json(voxels)
        values = {name: content[name] for name in POINTS}
        return cls(*rules, **{**values, 'use_dim': tuple(content['use_dim'])})

    @property
    def past(self) -> PastSweeps | None:
        """How sweeps of the past are merged; None where none are taken."""
        return PastSweeps(self.sweeps, self.pad_empty_sweeps, self.remove_close) if self.sweeps else None

    def img_aug_matrix(self) -> np.ndarray:
        """Return (N, 4, 4) float32: pictures as they were taken to the network's, pixels."""
        return np.tile(self.views.crop_matrix(4), (self.views.num_cameras, 1, 1))
