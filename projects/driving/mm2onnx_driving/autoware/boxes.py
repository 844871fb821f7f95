"""From the head's outputs to objects as in lidar_centerpoint; slow without numba.

Source: autoware_universe 5e12a711, autoware_lidar_centerpoint, lib/postprocess/{postprocess_kernel.cu,
circle_nms_kernel.cu,non_maximum_suppression.cpp} (formulas, no code).

Glossary: n objects, K classes, H, W cells of the head.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.check import read_manifest
from mm2onnx_driving.autoware.contract import read_parameters
from mm2onnx_driving.autoware.nodes import CENTERPOINT
from mm2onnx_driving.folder_rules import node_cells
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.violations import errors
from mmdeploy_ext.runtime.bird_eye import circle_nms, intersection_area
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.geometry import bev_corners, exact_sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.detections import Arrays


# Settings of lidar_centerpoint in its manifest.
#
# Source: autoware_universe 656cdab8 (ml_package.schema.json): names, no code.
#
# Glossary: K classes, B bins of distance.


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


OUTPUTS = ('heatmap', 'reg', 'height', 'dim', 'rot', 'vel')
"""Outputs of CenterPoint's head in the order in which the node takes them."""
SMALLEST_UNION_M2 = 0.01
"""Boxes with a smaller union do not overlap."""
CIRCLE_M, OVERLAP, OVERLAP_SEARCH_M = 0.5, 0.1, 10.0
"""The node's defaults: boxes nearer than the first to a better one are dropped, and boxes with a larger IoU
from above and centres within the last. Source: autoware_universe 4dff8e23, centerpoint_common.param.yaml.
"""


def decode(outputs: Arrays, settings: CenterPointSettings) -> Detections3D:
    """Return one object for each cell that passes the settings' thresholds, best first, none suppressed.

    `outputs` are `OUTPUTS`: (1, K, H, W) logits; (1, 2, H, W) x, y of the centre in cells from the lower
    corner of its cell; (1, 1, H, W) z of the centre in m; (1, 3, H, W) logarithms of width, length, height in
    m; (1, 2, H, W) sine and cosine of mmdet3d 0.x's yaw, from -y clockwise as seen from above; (1, 2, H, W)
    velocity x, y in m/s.
    """
    heat = exact_sigmoid(outputs['heatmap'][0].astype(np.float32))
    labels, scores = heat.argmax(0).reshape(-1), heat.max(0).reshape(-1)
    values = {name: outputs[name][0].reshape(outputs[name].shape[1], -1) for name in OUTPUTS[1:]}
    step = np.float32(settings.voxel_size[:2]) * np.float32(settings.downsample_factor)
    cells = np.stack(np.divmod(np.arange(len(labels)), heat.shape[2])[::-1]).astype(np.float32)
    xy = step[:, None] * (cells + values['reg'][:2]) + np.float32(settings.point_cloud_range[:2])[:, None]
    sizes = np.exp(values['dim'][[1, 0, 2]])
    bottom = values['height'][:1] - np.float32(0.5) * sizes[2:]
    sine, cosine = values['rot'][:2]
    yaw = -np.arctan2(sine, cosine) - np.float32(np.pi / 2)
    velocity = values['vel'][:2] * np.float32(settings.has_twist)
    boxes = np.concatenate([xy, bottom, sizes, yaw[None], velocity]).T.astype(np.float32)
    passes = passing(boxes[:, :2], scores, labels, settings)
    passes &= np.hypot(sine, cosine) >= np.float32(settings.yaw_norm_thresholds)[labels]
    return Detections3D(boxes, scores, labels)[passes].best_first()


def passing(
    xy: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: CenterPointSettings
) -> np.ndarray:
    """Return (n,) bool: the score reaches the threshold of the class in the bin of the distance.

    `xy` (n, 2): centres in metres from the origin.
    """
    bins = np.searchsorted(np.float32(settings.limits), np.hypot(*xy.T.astype(np.float32)), side='right')
    last = len(settings.limits) - 1
    thresholds = np.float32(settings.scores)[bins.clip(max=last), labels]
    return (bins <= last) & (scores >= thresholds) & (scores > 0)


def suppressed(objects: Detections3D, class_names: Sequence[str]) -> Detections3D:
    """Return the objects that the node's two suppressions keep, best first as given."""
    radius2 = np.nextafter(np.float64(CIRCLE_M) ** 2, 0)  # the node keeps boxes that are exactly as far
    objects = objects[circle_nms(objects.boxes[:, :2].astype(np.float64), radius2)]
    pedestrians = {index for index, name in enumerate(class_names) if name == 'PEDESTRIAN'}
    return objects[overlap_nms(objects, pedestrians, OVERLAP, OVERLAP_SEARCH_M)]


def overlap_nms(
    objects: Detections3D, separate_labels: set[int], threshold: float, search_m: float
) -> np.ndarray:
    """Return the ascending rows (m,) int64 with an IoU of at most `threshold` with every better object.

    `separate_labels` are compared with equal labels only; centres are at most `search_m` metres apart.
    """
    flat = objects.boxes[:, [0, 1, 3, 4, 6]].astype(np.float64)
    corners, areas = bev_corners(flat), flat[:, 2] * flat[:, 3]
    labels, is_separate = objects.labels, np.isin(objects.labels, list(separate_labels))

    def overlap(row: int, better: int) -> float:
        intersection = intersection_area(corners[row], corners[better])
        union = areas[row] + areas[better] - intersection
        return 0.0 if union < SMALLEST_UNION_M2 else intersection / union

    rows = []
    for row, place in enumerate(objects.boxes[:, :2]):
        gap = ((objects.boxes[:row, :2] - place) ** 2).sum(1)
        compared = (labels[:row] == labels[row]) | ~(is_separate[:row] | is_separate[row])
        neighbours = np.flatnonzero((gap <= search_m**2) & compared)
        if all(overlap(row, better) <= threshold for better in neighbours):
            rows.append(row)
    return np.array(rows, np.int64)
