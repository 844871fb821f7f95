"""The losses of TransFusion's head: boxes are assigned to queries, and their centres make a heat map.

Glossary: B samples, Q queries, K classes, G boxes of a sample, X, Y cells of the bird's-eye view.

Source: mit-han-lab/bevfusion db75150, models/heads/bbox/transfusion.py:343-713 and
core/bbox/assigners/hungarian_assigner.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.core.bbox.match_costs import FocalLossCost
from mmdet3d.core import draw_heatmap_gaussian, gaussian_radius
from mmdet3d.core.bbox.iou_calculators import BboxOverlaps3D
from mmdet3d.models.builder import build_loss
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.runtime.detections3d import in_lidar_columns

VALUES = ('center', 'height', 'dim', 'rot', 'vel')
"""Predictions of a query that make up its box."""
COSTS = dict(cls_cost='FocalLossCost', reg_cost='BBoxBEVL1Cost', iou_cost='IoU3DCost')
"""Costs of the assigner -> their types."""
LEAST_PROBABILITY = 1e-4
"""Smallest probability of the heat map, whose logarithm the loss takes; the largest is 1 minus it."""


class HeadLosses:
    """The three losses of the head of a config.

    Args:
        cls, heatmap, bbox: configs of the losses of a query's class, of the heat map and of a query's box.
        train_cfg: of the head: `assigner`, `code_weights`, `point_cloud_range`, `voxel_size`,
            `out_size_factor`, `gaussian_overlap` and `min_radius`.
        coder: box coder of the head.
        classes: K.

    Raises:
        ConfigError: a cost of another type than in `COSTS`, or a `pos_weight`: matched queries weigh 1.
    """

    def __init__(
        self,
        cls: Mapping[str, Any],
        heatmap: Mapping[str, Any],
        bbox: Mapping[str, Any],
        train_cfg: Mapping[str, Any],
        coder: Any,
        classes: int,
    ) -> None:
        rule = train_cfg.get('assigner') or {}
        types = {name: (rule.get(name) or {}).get('type') for name in COSTS}
        pos_weight = train_cfg.get('pos_weight', -1)
        if types != COSTS or pos_weight > 0:
            raise ConfigError(
                f'TransFusionHead: train_cfg has pos_weight={pos_weight} and an assigner with costs {types}; '
                f'expected pos_weight=-1 and {COSTS}'
            )
        self.cls, self.heatmap, self.bbox = (build_loss(dict(cfg)) for cfg in (cls, heatmap, bbox))
        self.train_cfg, self.coder, self.classes = train_cfg, coder, classes

    def __call__(
        self, predictions: Mapping[str, Tensor], gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return the losses of the predictions of `TransFusionHead.forward` for a batch.

        They are `loss_heatmap`, `layer_0_loss_cls` and `layer_0_loss_bbox`. Predictions are (B, columns, Q),
        `dense_heatmap` is (B, K, X, Y). Per sample there are boxes (G, 9) of the ground truth, with labels
        (G,). Columns are those of `TransFusionHead.get_bboxes`: x, y, z of the bottom, width, length, height,
        yaw from -y clockwise, velocity x, y.
        """
        values = torch.cat([predictions[name] for name in VALUES if name in predictions], 1).transpose(1, 2)
        targets = torch.zeros_like(values)
        labels = torch.full(values.shape[:2], self.classes, device=values.device, dtype=torch.long)
        heat = torch.zeros_like(predictions['dense_heatmap'])
        for sample, (boxes, labels_of_boxes) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
            queries, objects = self.match(predictions, sample, boxes, labels_of_boxes)
            labels[sample, queries] = labels_of_boxes[objects]
            targets[sample, queries] = self.coder.encode(boxes[objects])[:, : values.shape[2]]
            self.draw_centres(heat[sample], boxes, labels_of_boxes)
        matched = labels < self.classes
        count = max(int(matched.sum()), 1)
        weights = matched[..., None] * values.new_tensor(self.train_cfg['code_weights'][: values.shape[2]])
        dense = predictions['dense_heatmap'].sigmoid().clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        logits = predictions['heatmap'].transpose(1, 2).flatten(0, 1)
        ones = torch.ones(labels.numel(), device=values.device)
        return dict(
            loss_heatmap=self.heatmap(dense, heat, avg_factor=max(float(heat.eq(1).sum()), 1.0)),
            layer_0_loss_cls=self.cls(logits, labels.flatten(), ones, avg_factor=count),
            layer_0_loss_bbox=self.bbox(values, targets, weights, avg_factor=count),
        )

    @torch.no_grad()
    def match(
        self, predictions: Mapping[str, Tensor], sample: int, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the one-to-one matching of the lowest cost: indices of queries and of their boxes.

        Predictions are those of a batch, of which `sample` is an index; boxes (G, 9) and labels (G,) are the
        ground truth of this sample.
        """
        from scipy.optimize import linear_sum_assignment  # takes half a second to import

        values = (predictions[name][sample : sample + 1].detach() for name in VALUES if name in predictions)
        predicted = self.coder.boxes(*values)[0]
        rule = self.train_cfg['assigner']
        cls, reg, iou = (rule[name]['weight'] for name in ('cls_cost', 'reg_cost', 'iou_cost'))
        focal = {key: rule['cls_cost'][key] for key in ('gamma', 'alpha') if key in rule['cls_cost']}
        cost = FocalLossCost(weight=cls, **focal)(predictions['heatmap'][sample].detach().T, labels)
        limits = predicted.new_tensor(self.train_cfg['point_cloud_range'])
        low, high = limits[:2], limits[3:5]
        centres = ((rows[:, :2] - low) / (high - low) for rows in (predicted, boxes))
        cost = cost + reg * torch.cdist(*centres, p=1)
        lidar_boxes = (in_lidar_columns(rows[:, :7]) for rows in (predicted, boxes))
        cost = cost - iou * BboxOverlaps3D(coordinate='lidar')(*lidar_boxes)
        cost = torch.nan_to_num(cost, nan=100.0, posinf=100.0, neginf=-100.0)
        pairs = linear_sum_assignment(cost.cpu().numpy())
        return tuple(torch.from_numpy(indices).to(boxes.device) for indices in pairs)

    def draw_centres(self, heat: Tensor, boxes: Tensor, labels: Tensor) -> None:
        """Draw the centres of boxes (G, 9) with labels (G,) into a heat map (K, X, Y); rows are x.

        Boxes outside of the map, and those without width or length, are left out; as upstream, a centre less
        than a cell before the first row or column counts as in it.
        """
        train = self.train_cfg
        step = torch.tensor(train['voxel_size'][:2]) * train['out_size_factor']
        cells = self.coder.encode(boxes)[:, :2].cpu()
        for box, cell, label in zip(boxes.cpu(), cells, labels.tolist(), strict=True):
            width, length = box[3:5] / step
            row, column = (int(value) for value in cell)
            inside = 0 <= row < heat.shape[1] and 0 <= column < heat.shape[2]
            if width > 0 and length > 0 and inside:
                radius = gaussian_radius((length, width), min_overlap=train['gaussian_overlap'])
                radius = max(train['min_radius'], int(radius))
                draw_heatmap_gaussian(heat[label], torch.tensor([column, row]), radius)
