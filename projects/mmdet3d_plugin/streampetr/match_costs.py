"""Costs of matching predictions to ground truth that mmdet lacks."""

import torch
from mmdet.core.bbox.match_costs.builder import MATCH_COST
from torch import Tensor


@MATCH_COST.register_module()
class BBox3DL1Cost:
    """L1 distance of two sets of vectors, of any number of columns.

    Args:
        weight: factor of the distance.

    Source: DETR3D `core/bbox/match_costs/match_cost.py`.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, bbox_pred: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Return the cost (num_pred, num_gt) of predictions (num_pred, D) and ground truth (num_gt, D)."""
        return torch.cdist(bbox_pred, gt_bboxes, p=1) * self.weight
