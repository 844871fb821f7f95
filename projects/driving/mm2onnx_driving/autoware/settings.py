"""Settings of lidar_centerpoint in its manifest.

Source: autoware_universe 656cdab8 (ml_package.schema.json): names, no code.

Glossary: K classes, B bins of distance.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.check import read_manifest
from mm2onnx_driving.autoware.nodes import CENTERPOINT
from mm2onnx_driving.autoware.parameter_file import read_parameters
from mm2onnx_driving.folder_rules import node_cells
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.violations import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class CenterPointSettings:
    """Settings of one CenterPoint as the node runs it.

    Attributes:
        class_names: K, in Autoware's words.
        has_twist: whether velocities are published.
        point_feature_size: x, y, z, intensity (if 5), time lag.
        encoder_in_feature_size: 9, 10 or 11 values of a decorated point.
        max_voxel_size: most pillars.
        point_cloud_range: metres: lower x, y, z, then upper.
        voxel_size: metres, along x, y and z.
        downsample_factor: voxels along a side of a head's cell.
        yaw_norm_thresholds: (K,) least length of (sine, cosine) of a published box.
        limits: (B,) ascending upper bounds of distance, metres; no box is published beyond.
        scores: (B, K) least scores.
    """

    class_names: Sequence[str]
    has_twist: bool
    point_feature_size: int
    encoder_in_feature_size: int
    max_voxel_size: int
    point_cloud_range: Sequence[float]
    voxel_size: Sequence[float]
    downsample_factor: int
    yaw_norm_thresholds: Sequence[float]
    limits: Sequence[float]
    scores: np.ndarray

    @property
    def grid(self) -> tuple[int, int]:
        low, high, step = self.point_cloud_range[:3], self.point_cloud_range[3:], self.voxel_size
        x, y = (node_cells(low[axis], high[axis], step[axis]) for axis in (0, 1))
        return x, y

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> CenterPointSettings:
        model = parameters['model_params']
        thresholds = model['detection_score_thresholds']
        by_class = [thresholds['min_confidence_scores'][name] for name in model['class_names']]
        names = [field.name for field in dataclasses.fields(cls) if field.name in model]
        return cls(
            **{name: model[name] for name in names},
            limits=thresholds['distance_bin_upper_limits'],
            scores=np.transpose(by_class),
        )


def read_settings(folder: str | Path) -> CenterPointSettings:
    folder = Path(folder)
    _, violations = read_manifest(CENTERPOINT, folder)
    if wrong := errors(violations):
        more = f' ({len(wrong) - 1} more)' if len(wrong) > 1 else ''
        raise ModelFileError(f'{folder}: {wrong[0].message}{more}; see {tool("check")} {folder}')
    parameters = read_parameters(folder / CENTERPOINT.manifest)
    remapper = parameters[CENTERPOINT.remapper]
    if any(read_parameters(folder / remapper)['allow_remapping_by_area_matrix']):
        raise ModelFileError(
            f'{folder}: {remapper} lets classes change by area, which mm2onnx does not compute; set '
            'allow_remapping_by_area_matrix to zeros'
        )
    return CenterPointSettings.of(parameters)
