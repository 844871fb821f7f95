"""CenterPoint's head on BEVFusion's bird's-eye view, as in mit-han-lab's camera models, and the box coder.

Glossary: B samples, T tasks, X, Y cells of the bird's-eye view (rows are x), Q boxes of a task before
suppression or queries, K classes, n boxes, G boxes of the ground truth of a sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet3d.core import circle_nms, xywhr2xyxyr
from mmdet3d.core.post_processing import nms_bev
from mmdet3d.models.builder import HEADS
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- coder of TransFusion's head, too: predictions of a query to its box, and back


def boxes_of_cells(
    coder: Any,
    center: Tensor,
    height: Tensor,
    dim: Tensor,
    rot: Tensor,
    vel: Tensor | None = None,
    logarithms: bool = True,
) -> Tensor:
    """Return boxes (B, Q, 7 or 9): bottom centre, w, l, h in m, yaw in rad, velocity in m/s.

    Args:
        coder: box coder with `voxel_size`, `out_size_factor` and `pc_range`.
        center: (B, 2, Q), cells, x first.
        height: (B, 1, Q), m.
        dim: (B, 3, Q) w, l, h in m, or their logarithms.
        rot: (B, 2, Q) sine and cosine of the yaw.
        vel: (B, 2, Q) m/s; without it boxes have 7 columns.
        logarithms: `dim` holds logarithms.
    """
    cell_size = center.new_tensor([size * coder.out_size_factor for size in coder.voxel_size[:2]])[:, None]
    centre_m = center * cell_size + center.new_tensor(coder.pc_range[:2])[:, None]
    box_size = dim.exp() if logarithms else dim
    bottom = height - box_size[:, 2:] * 0.5
    yaw = torch.atan2(rot[:, :1], rot[:, 1:])
    columns = [centre_m, bottom, box_size, yaw]
    if vel is not None:
        columns.append(vel)
    return torch.cat(columns, 1).transpose(1, 2)


@registered_if_named(BBOX_CODERS)
class TransFusionBBoxCoder(BaseBBoxCoder):
    """Cells to metres, logarithms to sizes, gravity centre to bottom centre.

    `pc_range` is the first cell's corner (x, y, m); a cell is `out_size_factor` voxels of `voxel_size` (m);
    `code_size` is 8, or 10 with the velocity. Kept are boxes with a bottom centre in `post_center_range` (x,
    y, z low, then high) and a score above `score_threshold`.

    Source: mit-han-lab/bevfusion db75150, core/bbox/coders/transfusion_bbox_coder.py.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        out_size_factor: int,
        voxel_size: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        score_threshold: float | None = None,
        code_size: int = 8,
    ) -> None:
        self.pc_range, self.voxel_size = tuple(pc_range), tuple(voxel_size)
        self.out_size_factor, self.code_size = out_size_factor, code_size
        self.post_center_range = None if post_center_range is None else tuple(post_center_range)
        self.score_threshold = score_threshold

    def encode(self, boxes: Tensor) -> Tensor:
        """Return the regression targets (n, code_size) of boxes (n, 7 or 9), bottom centre, m, rad, m/s."""
        cell = boxes.new_tensor([size * self.out_size_factor for size in self.voxel_size[:2]])
        place = (boxes[:, :2] - boxes.new_tensor(self.pc_range[:2])) / cell
        height = boxes[:, 2:3] + boxes[:, 5:6] / 2
        yaw = boxes[:, 6:7]
        columns = [place, height, boxes[:, 3:6].log(), yaw.sin(), yaw.cos(), boxes[:, 7:9]]
        return torch.cat(columns, 1)[:, : self.code_size]

    boxes = boxes_of_cells

    def within_limits(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return (B, Q) bool: boxes (B, Q, 7 or 9) and scores (B, Q) within the limits."""
        valid = torch.ones_like(scores, dtype=torch.bool)
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            valid = ((boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])).all(2)
        return valid & (scores > self.score_threshold) if self.score_threshold else valid

    def decode(self, scores: Tensor, *values: Tensor) -> list[dict[str, Tensor]]:
        """Return 'bboxes', 'scores' and 'labels' of each sample, in the order of the queries.

        Scores are (B, K, Q) in 0..1, the values as in `boxes_of_cells`: center, height, dim, rot and vel.
        """
        best, labels = scores.max(1)
        boxes = self.boxes(*values)
        samples = zip(boxes, best, labels, self.within_limits(boxes, best), strict=True)
        return [
            dict(bboxes=rows[valid], scores=score[valid], labels=label[valid])
            for rows, score, label, valid in samples
        ]


# ---- head

KINDS = ('circle', 'rotate')
"""Values of `nms_type`: by the distance of centres, by the overlap of rotated boxes."""
VALUES = ('reg', 'height', 'dim', 'rot', 'vel')


@registered_if_named(HEADS)
class BEVFusionCenterHead(CenterHead):
    """mmdet3d's CenterHead for maps with x as rows, and boxes of mmdet3d 0.x with velocities.

    Source: mit-han-lab/bevfusion db75150, models/heads/bbox/centerpoint.py and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """

    def __init__(self, tasks: Sequence[Any], test_cfg: Mapping[str, Any], **config: Any) -> None:
        tasks = [task if isinstance(task, Mapping) else dict(class_names=list(task)) for task in tasks]
        super().__init__(tasks=tasks, test_cfg=test_cfg, **config)
        self.counts = tuple(self.num_classes)
        self.num_classes = sum(self.counts)
        self.num_proposals = int(self.bbox_coder.max_num) * len(self.counts)
        self.limits = tuple(float(value) for value in self.bbox_coder.post_center_range or ())
        _ = self.nms  # refuses invalid settings of the suppression
        if not self.with_velocity:
            raise ConfigError('CenterHead: common_heads has no vel; BEVFusion needs velocities')
        if self.test_cfg.get('max_pool_nms'):
            raise ConfigError('CenterHead: test_cfg.max_pool_nms=True; expected False')
        if not self.limits:
            raise ConfigError('CenterHead: bbox_coder.post_center_range is missing; expected six metres')
        limits_after_nms = self.test_cfg.get('post_center_limit_range') or self.limits
        lows = zip(limits_after_nms[:3], self.limits[:3], strict=True)
        highs = zip(self.limits[3:], limits_after_nms[3:], strict=True)
        if any(outer > inner for outer, inner in lows) or any(inner > outer for inner, outer in highs):
            raise ConfigError(
                f'CenterHead: test_cfg.post_center_limit_range={list(limits_after_nms)} excludes part of '
                f'bbox_coder.post_center_range={list(self.limits)}; expected the same range'
            )

    @property
    def nms(self) -> list[dict[str, Any]]:
        test, tasks = self.test_cfg, len(self.counts)
        kinds, scales = test.get('nms_type'), test.get('nms_scale', 1.0)
        kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds] * tasks
        if not isinstance(scales, list | tuple):
            scales = [[scales] * count for count in self.counts]
        if [kind for kind in kinds if kind not in KINDS] or len(kinds) != tasks:
            raise ConfigError(
                f'CenterHead: test_cfg.nms_type={kinds}; expected circle or rotate, or a list of {tasks}'
            )
        needed = ('post_max_size', 'nms_thr') if 'rotate' in kinds else ('post_max_size',)
        missing = [key for key in needed if test.get(key) is None]
        if missing:
            raise ConfigError(f'CenterHead: test_cfg.{missing[0]} is missing; expected a number')
        lengths = [len(factors) if isinstance(factors, list | tuple) else 0 for factors in scales]
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
                factors = [float(value) for value in scales[task]]
                group |= dict(
                    overlap=number('nms_thr', test['nms_thr'], float),
                    first=test.get('pre_max_size'),
                    scales=factors,
                )
            groups.append(group)
            first += count
        return groups

    def forward(self, feats: Tensor) -> list[dict[str, Tensor]]:
        """Return `VALUES` and `heatmap` logits of each task, (B, ., X, Y)."""
        return self.forward_single(feats)

    def score_threshold(self, group: Mapping[str, Any]) -> float:
        return 0.0 if 'radius' in group else float(self.test_cfg.get('score_threshold') or 0.0)

    def candidates(self, tasks: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, T Q, 9), scores and labels (B, T Q) of each task before suppression.

        Labels count through all tasks; -1 for boxes that the coder drops, or below `score_threshold`.
        """
        pairs = zip(tasks, self.nms, strict=True)
        boxes, scores, labels = zip(*(self._candidates_of_task(*pair) for pair in pairs), strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)

    def _candidates_of_task(
        self, maps: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        valid = ((centre >= limits[:3]) & (centre <= limits[3:])).all(2)
        valid = valid & (scores >= self.score_threshold(group))
        if coder.score_threshold:
            valid = valid & (scores > coder.score_threshold)
        return boxes, scores, torch.where(valid, labels + group['classes'][0], -1)

    @torch.no_grad()
    def get_bboxes(self, tasks: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return 'bboxes' (n, 9), 'scores' (n,), 'labels' (n,) per sample after NMS."""
        boxes_of_tasks = []
        for maps, group in zip(tasks, self.nms, strict=True):
            samples = self._decoded(maps)
            boxes_of_tasks.append([self._suppressed(sample, group) for sample in samples])
        return [
            {name: torch.cat([boxes[name] for boxes in sample]) for name in sample[0]}
            for sample in zip(*boxes_of_tasks, strict=True)
        ]

    def _decoded(self, maps: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        maps = x_last(maps)
        sizes, rot = maps['dim'], maps['rot']
        samples = self.bbox_coder.decode(
            maps['heatmap'].sigmoid(),
            rot[:, :1],
            rot[:, 1:],
            maps['height'],
            sizes.exp() if self.norm_bbox else sizes,
            maps['vel'],
            reg=maps['reg'],
        )
        self.bbox_coder.post_center_range = self.limits  # mmdet3d's coder makes a tensor of them
        return samples

    def _suppressed(self, sample: Mapping[str, Tensor], group: Mapping[str, Any]) -> dict[str, Tensor]:
        valid = sample['scores'] >= self.score_threshold(group)
        boxes, scores, labels = (sample[name][valid] for name in ('bboxes', 'scores', 'labels'))
        rows = rows_after_nms(boxes, scores, labels.long(), group)
        boxes = boxes[rows]
        boxes[:, 2] -= boxes[:, 5] * 0.5
        return dict(bboxes=boxes, scores=scores[rows], labels=labels[rows].long() + group['classes'][0])

    def suppress(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows_of_tasks = []
        for group in self.nms:
            in_group = torch.isin(sample['labels'], sample['labels'].new_tensor(group['classes']))
            rows = in_group.nonzero()[:, 0]
            boxes, scores, labels = (sample[name][rows] for name in ('bboxes', 'scores', 'labels'))
            rows_of_tasks.append(rows[rows_after_nms(boxes, scores, labels - group['classes'][0], group)])
        remaining = torch.cat(rows_of_tasks)
        return {name: value[remaining] for name, value in sample.items()}


def x_last(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return maps (B, channels, Y, X) for mmdet3d, of maps (B, channels, X, Y)."""
    return {name: value.transpose(2, 3).contiguous() for name, value in maps.items()}


def rows_after_nms(boxes: Tensor, scores: Tensor, labels: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return the rows (k,) int64, best first, of a group's boxes (n, 9) that NMS keeps."""
    if not len(boxes):
        return labels
    if 'radius' in group:
        centres_and_scores = torch.cat([boxes[:, :2], scores[:, None]], 1).cpu().numpy()
        rows = circle_nms(centres_and_scores, group['radius'], group['most'])
        return torch.as_tensor(rows, dtype=torch.long, device=boxes.device)
    columns = in_lidar_columns(boxes)
    sizes = columns[:, 3:5] * columns.new_tensor(group['scales'])[labels][:, None]
    boxes_bev = xywhr2xyxyr(torch.cat([columns[:, :2], sizes, columns[:, 6:7]], 1))
    return nms_bev(
        boxes_bev, scores, group['overlap'], pre_max_size=group['first'], post_max_size=group['most']
    )
