"""CenterPoint from points to boxes: the sparse backbone, or pillars, and the dense head on ONNX Runtime.

    runtime = CenterPointOnnx('work_dirs/centerpoint')     # the folder that pytorch2onnx.py wrote
    boxes = runtime.detect(read_points('sweep.pcd.bin', runtime.width))

Glossary: K classes of a task, H, W heat map, n boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.centerpoint.facts import VALUES
from mmdeploy_ext.families.parts.runtime.scores import top_rows
from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.runtime.lidar import LidarOnnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.families.centerpoint.facts import CenterPointFacts


def decode(outputs: Mapping[str, np.ndarray], rule: CenterPointFacts) -> Detections3D:
    """Decode the head's outputs of one sweep, best first; of equal scores the earlier task comes first.

    The outputs of task t are `heatmap_t` (1, K, H, W) logits, `reg_t` (1, 2, H, W) cells, `height_t` (1, 1,
    H, W) m, `dim_t` (1, 3, H, W) m or their logarithms (`norm_bbox`), `rot_t` (1, 2, H, W) sine and cosine,
    and `with_velocity` `vel_t` (1, 2, H, W) m/s.

    Boxes (n, 9) are x, y, z of the bottom's centre, length, width, height, m, yaw, rad, and vx, vy, m/s, in
    the LiDAR frame.

    Source: mmdet3d 1.0.0rc6, models/dense_heads/centerpoint_head.py `get_bboxes` and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """
    tasks = []
    for task in range(len(rule.num_classes)):
        names = [name for name in (*VALUES, 'heatmap') if f'{name}_{task}' in outputs]
        candidates = task_boxes({name: outputs[f'{name}_{task}'] for name in names}, rule)
        detections = suppress(candidates, task, rule)
        first_label = sum(rule.num_classes[:task])
        tasks.append((detections.boxes, detections.scores, detections.labels + first_label))
    boxes, scores, labels = (np.concatenate(column) for column in zip(*tasks, strict=True))
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    return Detections3D(boxes, scores, labels).best_first()


def task_boxes(maps: Mapping[str, np.ndarray], rule: CenterPointFacts) -> Detections3D:
    """Return the boxes of one task before NMS, best first, with z in the middle."""
    heat = exact_sigmoid(maps['heatmap'][0])
    _, height, width = heat.shape
    scores = heat.reshape(-1)
    peaks = top_rows(scores, rule.max_num)
    labels, cells = np.divmod(peaks, height * width)
    values = {
        name: array[0].reshape(array.shape[1], -1)[:, cells].T.astype(np.float32)
        for name, array in maps.items()
    }
    grid = np.stack([cells % width, cells // width], axis=1).astype(np.float32)
    xy = (grid + values['reg']) * np.float32(rule.out_size_factor)
    xy = xy * np.float32(rule.voxel_size) + np.float32(rule.pc_origin)
    sizes = np.exp(values['dim']) if rule.norm_bbox else values['dim']
    yaw = np.arctan2(values['rot'][:, :1], values['rot'][:, 1:])
    velocity = values['vel'] if rule.with_velocity else np.zeros((len(xy), 2), np.float32)
    boxes = np.concatenate([xy, values['height'], sizes, yaw, velocity], axis=1).astype(np.float32)
    detections = Detections3D(boxes, scores[peaks], labels)
    valid = in_range(boxes, rule.post_center_range)
    if rule.score_threshold:
        valid &= detections.scores > np.float32(rule.score_threshold)
    return detections[valid]


def suppress(detections: Detections3D, task: int, rule: CenterPointFacts) -> Detections3D:
    """Return the boxes of one task that NMS keeps, best first, regardless of their classes."""
    if rule.nms_type == 'circle':
        rows = circle_nms(detections.boxes[:, :2], rule.min_radius[task])
        return detections[rows[: rule.post_max_size]]
    if rule.nms_score_threshold > 0:
        detections = detections[detections.scores >= np.float32(rule.nms_score_threshold)]
    boxes_bev = detections.boxes[: rule.pre_max_size, [0, 1, 3, 4, 6]]
    detections = detections[rotated_nms(boxes_bev, rule.nms_thr)[: rule.post_max_size]]
    if rule.post_center_limit_range:
        detections = detections[in_range(detections.boxes, rule.post_center_limit_range)]
    return detections


class CenterPointOnnx(LidarOnnx):
    family = 'centerpoint'
    decode = staticmethod(decode)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs, metadata.postprocess)


OPENS, QUANTISED = CenterPointOnnx, 'head'
