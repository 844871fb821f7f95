"""From the head's outputs to objects, as lidar_centerpoint computes and publishes them; slow without numba.

Source: autoware_universe 5e12a711, autoware_lidar_centerpoint, lib/postprocess/{postprocess_kernel.cu,
circle_nms_kernel.cu,non_maximum_suppression.cpp}, lib/ros_utils.cpp (formulas, no code).

Glossary: n objects, K classes, H, W cells of the head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.bev_nms import bev_corners, circle_nms, intersection_area
from mmdeploy_ext.runtime.detections import Rows
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.geometry import exact_sigmoid

if TYPE_CHECKING:
    from mmdeploy_ext.consumers.autoware.settings import CenterPointSettings
    from mmdeploy_ext.runtime.detections import Arrays

OUTPUTS = ('heatmap', 'reg', 'height', 'dim', 'rot', 'vel')
"""Outputs of CenterPoint's head in the order in which the node takes them."""
SMALLEST_UNION_M2 = 0.01
"""Boxes that cover less together do not overlap."""


@dataclasses.dataclass(frozen=True)
class NodeObjects(Rows):
    """Objects as the node publishes them, in the frame of its points, best first.

    Attributes:
        places: (n, 3) float32, metres, of the centres.
        sizes: (n, 3) float32, metres: length along the heading, width, height.
        yaws: (n,) float32, radians, counter-clockwise from x, not brought into one range.
        twists: (n, 2) float32, m/s, along the heading and to its left; zeros without has_twist, and of the
            nodes that publish none.
        scores: (n,) float32.
        labels: (n,) int64, indices of the settings' class_names.
        variances: (n, 9) float32 of x, y, z, width, length, height, yaw, vx, vy, these two in the frame of
            the points; None without has_variance.
    """

    places: np.ndarray
    sizes: np.ndarray
    yaws: np.ndarray
    twists: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    variances: np.ndarray | None = None

    def detections(self) -> Detections3D:
        """Return them as mmdet3d 1.x has boxes: z at the bottom, velocities along x and y."""
        cos, sin = np.cos(self.yaws), np.sin(self.yaws)
        along, across = self.twists.T
        speed = np.stack([cos * along - sin * across, sin * along + cos * across], axis=1)
        bottom = self.places - np.float32([0, 0, 0.5]) * self.sizes[:, 2:]
        boxes = np.concatenate([bottom, self.sizes, self.yaws[:, None], speed], axis=1)
        return Detections3D(boxes.astype(np.float32), self.scores, self.labels)


def decode(outputs: Arrays, settings: CenterPointSettings) -> NodeObjects:
    """Return one object for each cell that passes the settings' thresholds, best first, none suppressed.

    `outputs` are those of `OUTPUTS`, in this order: (1, K, H, W) logits, (1, 2, H, W) x, y of the centre in
    cells from the lower corner of its cell, (1, 1, H, W) z of the centre in m, (1, 3, H, W) logarithms of
    width, length, height in m, (1, 2, H, W) sine and cosine of the yaw of mmdet3d 0.x, from -y clockwise as
    seen from above, (1, 2, H, W) velocity along x and y in m/s. With has_variance, all but the heat map have
    twice the channels; the second half are logarithms of variances.
    """
    heat = exact_sigmoid(outputs['heatmap'][0].astype(np.float32))
    labels, scores = heat.argmax(0).reshape(-1), heat.max(0).reshape(-1)
    values = {name: outputs[name][0].reshape(outputs[name].shape[1], -1) for name in OUTPUTS[1:]}
    step = np.float32(settings.voxel[:2]) * np.float32(settings.stride)
    cells = np.stack(np.divmod(np.arange(len(labels)), heat.shape[2])[::-1]).astype(np.float32)
    xy = step[:, None] * (cells + values['reg'][:2]) + np.float32(settings.cloud[:2])[:, None]
    places = np.concatenate([xy, values['height'][:1]]).T
    sine, cosine = values['rot'][:2]
    yaws = -np.arctan2(sine, cosine) - np.float32(np.pi / 2)
    cos, sin = np.cos(yaws), np.sin(yaws)
    vx, vy = values['vel'][:2] * np.float32(settings.has_twist)
    objects = NodeObjects(
        places=places.astype(np.float32),
        sizes=np.exp(values['dim'][[1, 0, 2]]).T,
        yaws=yaws,
        twists=np.stack([cos * vx + sin * vy, cos * vy - sin * vx], axis=1),
        scores=scores,
        labels=labels,
        variances=_variances(values, settings) if settings.has_variance else None,
    )
    passes = passing(places[:, :2], scores, labels, settings)
    passes &= np.hypot(sine, cosine) >= np.float32(settings.yaw_norms)[labels]
    return objects[passes].best_first()


def passing(
    xy: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: CenterPointSettings
) -> np.ndarray:
    """Return (n,) bool: whether the score reaches the threshold of the class in the bin of the distance.

    A score of 0, and a distance at the last limit or beyond, do not pass; one at another limit is in the bin
    behind it.

    Args:
        xy: (n, 2) centres in metres, whose distance is measured from the origin.
        scores: (n,) in 0..1.
        labels: (n,) class indices.
        settings: settings of the node, with limits of the bins and thresholds.
    """
    bins = np.searchsorted(np.float32(settings.limits), np.hypot(*xy.T.astype(np.float32)), side='right')
    last = len(settings.limits) - 1
    thresholds = np.float32(settings.scores)[bins.clip(max=last), labels]
    return (bins <= last) & (scores >= thresholds) & (scores > 0)


def suppressed(objects: NodeObjects, settings: Any) -> NodeObjects:
    """Return the objects that the two suppressions of a node keep; they are given and returned best first.

    The settings have `class_names`, `circle_m`, `iou` and `iou_search_m`, as `CenterPointSettings` has them.
    """
    if settings.circle_m > 0:
        radius2 = np.nextafter(np.float64(settings.circle_m) ** 2, 0)  # the node keeps what is exactly as far
        objects = objects[circle_nms(objects.places[:, :2].astype(np.float64), radius2)]
    pedestrians = {index for index, name in enumerate(settings.class_names) if name == 'PEDESTRIAN'}
    return objects[overlap_nms(objects, pedestrians, settings.iou, settings.iou_search_m)]


def overlap_nms(
    objects: NodeObjects, separate_labels: set[int], threshold: float, search_m: float
) -> np.ndarray:
    """Return the ascending rows (m,) int64 whose IoU with every better object is at most a threshold.

    Better objects are those before it, also if they are dropped themselves. Objects are seen from above;
    labels in `separate_labels` are compared only with equal labels, and no objects whose centres are further
    apart than `search_m`, in metres.
    """
    flat = np.concatenate([objects.places[:, :2], objects.sizes[:, :2], objects.yaws[:, None]], axis=1)
    corners = bev_corners(flat.astype(np.float64))
    areas = np.prod(objects.sizes[:, :2].astype(np.float64), axis=1)
    labels, is_separate = objects.labels, np.isin(objects.labels, list(separate_labels))

    def overlap(row: int, better: int) -> float:
        intersection = intersection_area(corners[row], corners[better])
        union = areas[row] + areas[better] - intersection
        return 0.0 if union < SMALLEST_UNION_M2 else intersection / union

    rows = []
    for row, place in enumerate(objects.places[:, :2]):
        gap = ((objects.places[:row, :2] - place) ** 2).sum(1)
        compared = (labels[:row] == labels[row]) | ~(is_separate[:row] | is_separate[row])
        neighbours = np.flatnonzero((gap <= search_m**2) & compared)
        if all(overlap(row, better) <= threshold for better in neighbours):
            rows.append(row)
    return np.array(rows, np.int64)


def _variances(values: Arrays, settings: CenterPointSettings) -> np.ndarray:
    """Return variances (cells, 9) of x, y, z, width, length, height, yaw, vx, vy.

    Those of y are scaled by the voxel's size along x, as in the node.
    """
    step = np.float32(settings.voxel[0]) * np.float32(settings.stride)
    sine, cosine = values['rot'][:2]
    yaw = cosine**2 * np.exp(values['rot'][2]) + sine**2 * np.exp(values['rot'][3])
    with np.errstate(invalid='ignore'):  # NaN of a direction without length, as in the node
        yaw /= (sine**2 + cosine**2) ** 2
    rows = [
        step * np.exp(values['reg'][2:]),
        np.exp(values['height'][1:]),
        np.exp(values['dim'][3:]),
        yaw[None],
        np.exp(values['vel'][2:]),
    ]
    return np.concatenate(rows).T
