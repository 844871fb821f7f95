"""Settings of lidar_centerpoint: those of its manifest, and those of the node's own parameter file.

Source: autoware_universe 656cdab8 (ml_package.schema.json), 4dff8e23 (centerpoint_common.param.yaml): names
and numbers, no code.

Glossary: K classes, B bins of distance.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.check import read_manifest
from mmdeploy_ext.consumers.autoware.nodes import CENTERPOINT, node_cells
from mmdeploy_ext.consumers.autoware.parameter_file import read_parameters
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.violations import errors

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class CenterPointSettings:
    """Settings of one CenterPoint as the node runs it.

    Attributes:
        class_names: K, in Autoware's words.
        has_twist: whether velocities are published.
        has_variance: whether the head has variances, too.
        point_width: values of a point: x, y, z, intensity if there are 5, time lag.
        features: values of a decorated point: 9, 10 or 11.
        pillars: rows of the encoder; further pillars are left out.
        cloud: point_cloud_range, metres: lower x, y, z, then upper.
        voxel: voxel_size, metres, along x, y and z.
        stride: number of voxels along a side of a cell of the head.
        yaw_norms: (K,) least length of a box's (sine, cosine) of the yaw; boxes with less are not published.
        limits: (B,) upper bounds of distance, metres, ascending; boxes from the last on are not published.
        scores: (B, K) least scores; those below 0, and those of 1 and more, are 0 here.
        circle_m: metres; boxes that are closer than this to a better one that stays are dropped, whatever
            their class; 0 is off. Of the node's own file, as are those below.
        iou: boxes whose IoU from above with a better one is larger, also with one that is dropped itself, are
            dropped; above 1 it is off. Pedestrians are not compared with other classes.
        iou_search_m: metres; boxes further apart are not compared by their overlap.
    """

    class_names: tuple[str, ...]
    has_twist: bool
    has_variance: bool
    point_width: int
    features: int
    pillars: int
    cloud: tuple[float, ...]
    voxel: tuple[float, float, float]
    stride: int
    yaw_norms: tuple[float, ...]
    limits: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    circle_m: float = 0.5
    iou: float = 0.1
    iou_search_m: float = 10.0

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of voxels along x and y: float32 quotients, cut off."""
        x, y = (node_cells(self.cloud[axis], self.cloud[axis + 3], self.voxel[axis]) for axis in (0, 1))
        return x, y

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> CenterPointSettings:
        """Return the settings that a manifest states; fields with a default keep it."""
        model = parameters['model_params']
        thresholds = model['detection_score_thresholds']
        scores = np.array([thresholds['min_confidence_scores'][name] for name in model['class_names']])
        scores = np.where((scores >= 0) & (scores < 1), scores, 0.0).T
        return cls(
            class_names=tuple(model['class_names']),
            has_twist=model['has_twist'],
            has_variance=model['has_variance'],
            point_width=model['point_feature_size'],
            features=model['encoder_in_feature_size'],
            pillars=model['max_voxel_size'],
            cloud=tuple(map(float, model['point_cloud_range'])),
            voxel=tuple(map(float, model['voxel_size'])),
            stride=model['downsample_factor'],
            yaw_norms=tuple(model['yaw_norm_thresholds']),
            limits=tuple(thresholds['distance_bin_upper_limits']),
            scores=tuple(map(tuple, scores.tolist())),
        )


def read_settings(folder: str | Path) -> CenterPointSettings:
    """Return the settings that the manifest of a folder states.

    ModelFileError: the node would reject the manifest or read it wrongly; the message has what is wrong.
    """
    folder = Path(folder)
    _, violations = read_manifest(CENTERPOINT, folder)
    if wrong := errors(violations):
        more = f' ({len(wrong) - 1} more)' if len(wrong) > 1 else ''
        raise ModelFileError(f'{folder}: {wrong[0].message}{more}; see {tool("check")} {folder}')
    parameters = read_parameters(folder / CENTERPOINT.manifest)
    remapper = parameters[CENTERPOINT.remapper]
    if any(read_parameters(folder / remapper)['allow_remapping_by_area_matrix']):
        raise ModelFileError(
            f'{folder}: {remapper} allows classes to change by area, which is not computed here; set '
            f'allow_remapping_by_area_matrix to zeros'
        )
    return CenterPointSettings.of(parameters)
