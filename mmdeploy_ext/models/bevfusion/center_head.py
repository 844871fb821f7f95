"""CenterPoint's head on BEVFusion's bird's-eye view, as mit-han-lab has it for cameras alone.

Glossary: B samples, T tasks, K classes of a task, X, Y cells of the bird's-eye view (rows are x), Q boxes of
a task that are looked at, n boxes that stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.core import LiDARInstance3DBoxes, circle_nms, xywhr2xyxyr
from mmdet3d.core.post_processing import nms_bev
from mmdet3d.models.builder import HEADS
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.bevfusion.runtime.boxes import in_lidar_columns
from mmdeploy_ext.models.bevfusion.coder import boxes_of_cells
from mmdeploy_ext.models.catalogue import offered

KINDS = ('circle', 'rotate')
VALUES = ('reg', 'height', 'dim', 'rot', 'vel')
"""Maps of a task besides its `heatmap`."""


@offered(HEADS)
class BEVFusionCenterHead(CenterHead):
    """mmdet3d's CenterHead for maps whose rows are x, and boxes of mmdet3d 0.x; velocities are needed.

    Tasks are lists of class names, or as mmdet3d has them. Of `test_cfg`, `nms_type` is of all tasks or of
    each, `nms_scale` of all classes or of each of each task: sizes are multiplied by it before rotated boxes
    are compared. What does not fit raises ConfigError.

    Source: mit-han-lab/bevfusion db75150, models/heads/bbox/centerpoint.py and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """

    def __init__(self, tasks: Sequence[Any], test_cfg: Mapping[str, Any], **config: Any) -> None:
        named = [task if isinstance(task, Mapping) else dict(class_names=list(task)) for task in tasks]
        super().__init__(tasks=named, test_cfg=test_cfg, **config)
        self.counts = tuple(self.num_classes)
        self.num_classes = sum(self.counts)
        self.num_proposals = int(self.bbox_coder.max_num) * len(self.counts)
        self.limits = tuple(float(value) for value in self.bbox_coder.post_center_range or ())
        self._check()

    def _check(self) -> None:
        test, _ = self.test_cfg, self.nms  # which refuses its own keys
        if not self.with_velocity:
            raise ConfigError('CenterHead: common_heads has no vel; BEVFusion has velocities')
        if test.get('max_pool_nms'):
            raise ConfigError('CenterHead: test_cfg.max_pool_nms=True; expected False')
        if not self.limits:
            raise ConfigError('CenterHead: bbox_coder.post_center_range is missing; expected six metres')
        after = test.get('post_center_limit_range') or self.limits
        is_wider = [low <= limit for low, limit in zip(after[:3], self.limits[:3], strict=True)]
        is_wider += [limit <= high for limit, high in zip(self.limits[3:], after[3:], strict=True)]
        if not all(is_wider):
            raise ConfigError(
                f'CenterHead: test_cfg.post_center_limit_range={list(after)} leaves out a part of '
                f'bbox_coder.post_center_range={list(self.limits)}; expected the same range'
            )

    @property
    def nms(self) -> list[dict[str, Any]]:
        """Return the settings by which boxes of each task are suppressed, see `frames.spread_out`.

        A proof changes its thresholds.
        """
        test, tasks = self.test_cfg, len(self.counts)
        kinds, scales = test.get('nms_type'), test.get('nms_scale', 1.0)
        kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds] * tasks
        if not isinstance(scales, list | tuple):
            scales = [[scales] * count for count in self.counts]
        if [kind for kind in kinds if kind not in KINDS] or len(kinds) != tasks:
            raise ConfigError(
                f'CenterHead: test_cfg.nms_type={kinds}; expected circle or rotate, or {tasks} of them'
            )
        lengths = [len(scale) if isinstance(scale, list | tuple) else 0 for scale in scales]
        if lengths != list(self.counts):
            raise ConfigError(f'CenterHead: test_cfg.nms_scale={scales}; expected one for each class')
        radii = test.get('min_radius') or ()
        if 'circle' in kinds and len(radii) != tasks:
            raise ConfigError(f'CenterHead: test_cfg.min_radius={list(radii)}; expected {tasks} numbers')
        groups, first = [], 0
        for task, (kind, count) in enumerate(zip(kinds, self.counts, strict=True)):
            group = dict(classes=list(range(first, first + count)), most=int(test['post_max_size']))
            if kind == 'circle':
                group |= dict(radius=float(radii[task]))
            else:
                first_of, sizes = test.get('pre_max_size'), [float(value) for value in scales[task]]
                group |= dict(overlap=float(test['nms_thr']), first=first_of, scales=sizes)
            groups.append(group)
            first += count
        return groups

    def forward(self, feats: Tensor) -> list[dict[str, Tensor]]:
        """Return `VALUES` and `heatmap` logits of each task, (B, ., X, Y), of (B, in_channels, X, Y)."""
        return self.forward_single(feats)

    def least_score(self, group: Mapping[str, Any]) -> float:
        """Return the score that boxes of a task need before they are compared, inclusive."""
        return 0.0 if 'radius' in group else float(self.test_cfg.get('score_threshold') or 0.0)

    def candidates(self, predictions: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best boxes of each task before suppression; columns of mmdet3d 0.x, bottom centre.

        Boxes are (B, T Q, 9), scores (B, T Q), labels (B, T Q), -1 where the coder drops a box.
        """
        pairs = zip(predictions, self.nms, strict=True)
        boxes, scores, labels = zip(*(self._of_task(*pair) for pair in pairs), strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)

    def _of_task(self, maps: Mapping[str, Tensor], group: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        coder, heat = self.bbox_coder, maps['heatmap'].sigmoid()
        cells, width = heat.shape[2] * heat.shape[3], heat.shape[3]
        scores, top = heat.flatten(1).topk(int(coder.max_num))
        labels, places = top // cells, top % cells
        reg, height, dim, rot, vel = (
            maps[name].flatten(2).gather(2, places[:, None].expand(-1, maps[name].shape[1], -1))
            for name in VALUES
        )
        cell = torch.stack([places // width, places % width], 1) + reg
        boxes = boxes_of_cells(coder, cell, height, dim, rot, vel, self.norm_bbox)
        centre, limits = torch.cat([boxes[..., :2], height.transpose(1, 2)], 2), reg.new_tensor(self.limits)
        is_candidate = ((centre >= limits[:3]) & (centre <= limits[3:])).all(2)
        is_candidate = is_candidate & (scores >= self.least_score(group))
        if coder.score_threshold:
            is_candidate = is_candidate & (scores > coder.score_threshold)
        return boxes, scores, torch.where(is_candidate, labels + group['classes'][0], -1)

    @torch.no_grad()
    def get_bboxes(self, predictions: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return 'bboxes' (n, 9), 'scores' (n,), 'labels' (n,) per sample, by mmdet3d's coder."""
        tasks = [
            [self._suppressed(detections, group) for detections in self._decoded(maps)]
            for maps, group in zip(predictions, self.nms, strict=True)
        ]
        return [
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*tasks, strict=True)
        ]

    def _decoded(self, maps: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return mmdet3d's boxes of one task per sample."""
        maps = x_last(maps)
        sizes, turns = maps['dim'], maps['rot']
        detections = self.bbox_coder.decode(
            maps['heatmap'].sigmoid(),
            turns[:, :1],
            turns[:, 1:],
            maps['height'],
            sizes.exp() if self.norm_bbox else sizes,
            maps['vel'],
            reg=maps['reg'],
        )
        self.bbox_coder.post_center_range = self.limits  # it makes a tensor of them
        return detections

    def _suppressed(self, detections: Mapping[str, Tensor], group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the boxes of a task and sample that stay, with bottom centres and labels of all tasks."""
        passes = detections['scores'] >= self.least_score(group)
        boxes, scores, labels = (detections[name][passes] for name in ('bboxes', 'scores', 'labels'))
        rows = kept_rows(boxes, scores, labels.long(), group)
        boxes = boxes[rows]
        boxes[:, 2] -= boxes[:, 5] * 0.5
        return dict(bboxes=boxes, scores=scores[rows], labels=labels[rows].long() + group['classes'][0])

    def spread_out(self, detections: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the boxes of one sample, of all tasks, that the suppression of their tasks keeps."""
        parts = []
        for group in self.nms:
            first = group['classes'][0]
            task_rows = torch.isin(
                detections['labels'], detections['labels'].new_tensor(group['classes'])
            ).nonzero()[:, 0]
            boxes, scores, labels = (detections[name][task_rows] for name in ('bboxes', 'scores', 'labels'))
            parts.append(task_rows[kept_rows(boxes, scores, labels - first, group)])
        rows = torch.cat(parts)
        return {name: value[rows] for name, value in detections.items()}

    def loss(
        self, predictions: Sequence[Mapping[str, Tensor]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return mmdet3d's losses of each task; boxes (G, 9) per sample are the model's, labels (G,)."""
        gt_boxes = [LiDARInstance3DBoxes(rows, box_dim=rows.shape[1]) for rows in boxes]
        return super().loss(gt_boxes, list(labels), tuple([x_last(maps)] for maps in predictions))


def x_last(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return maps (B, ., Y, X), as mmdet3d reads them, of maps (B, ., X, Y)."""
    return {name: value.transpose(2, 3).contiguous() for name, value in maps.items()}


def kept_rows(boxes: Tensor, scores: Tensor, labels: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return the rows of boxes (n, 9) that the suppression of a group keeps.

    Boxes have columns of mmdet3d 0.x; labels (n,) count within the group, which is one of
    `BEVFusionCenterHead.nms`.
    """
    if not len(boxes):
        return labels
    if 'radius' in group:
        places = torch.cat([boxes[:, :2], scores[:, None]], 1).cpu().numpy()
        rows = circle_nms(places, group['radius'], group['most'])
        return torch.as_tensor(rows, dtype=torch.long, device=boxes.device)
    columns = in_lidar_columns(boxes)
    sizes = columns[:, 3:5] * columns.new_tensor(group['scales'])[labels][:, None]
    rectangles = xywhr2xyxyr(torch.cat([columns[:, :2], sizes, columns[:, 6:7]], 1))
    return nms_bev(
        rectangles, scores, group['overlap'], pre_max_size=group['first'], post_max_size=group['most']
    )
