"""One-to-one matching of predictions with ground truth, of the 3D head and of the 2D auxiliary head.

Source: DETR (Carion et al., 2020) section 3.1; the costs are StreamPETR's (`core/bbox/assigners/`).

Glossary: Q queries, T tokens of an image, K classes, G boxes of the ground truth, H, W, C height, width and
channels of a padded image, D columns.
"""

import torch
from mmdet.core.bbox.assigners import AssignResult, BaseAssigner
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.match_costs import build_match_cost
from mmdet.core.bbox.match_costs.builder import MATCH_COST
from mmdet.core.bbox.transforms import bbox_cxcywh_to_xyxy
from torch import Tensor

from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.streampetr.coder import normalize_bbox

WORST_COST = 100.0
"""What stands for a cost that is NaN or infinite, see `match`."""


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns (int64, on the cost's device) of the cheapest one-to-one matching.

    The cost is (num_pred, num_gt); NaN and +inf count as 100, -inf as -100, as upstream has it.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    finite = torch.nan_to_num(cost.detach(), nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def to_result(cost: Tensor | None, gt_labels: Tensor, num_pred: int) -> AssignResult:
    """Return mmdet's result: `gt_inds` (num_pred,) is 0 for background, i + 1 for ground truth i.

    Its `labels` (num_pred,) are those of the ground truth, -1 for background.

    Args:
        cost: (num_pred, G), see `match`; None stands for background alone.
        gt_labels: (G,).
        num_pred: number of predictions.
    """
    gt_inds = gt_labels.new_zeros(num_pred, dtype=torch.long)
    labels = gt_labels.new_full((num_pred,), -1, dtype=torch.long)
    if cost is not None:
        rows, columns = match(cost)
        gt_inds[rows] = columns + 1
        labels[rows] = gt_labels[columns].long()
    return AssignResult(len(gt_labels), gt_inds, None, labels=labels)


def refuse_ignored(gt_bboxes_ignore: Tensor | None) -> None:
    """Raise ValueError for boxes to ignore: one-to-one matching has no place for them."""
    if gt_bboxes_ignore is not None:
        raise ValueError(
            f'gt_bboxes_ignore: got {type(gt_bboxes_ignore).__name__}, expected None; '
            'remove ignored boxes from the ground truth'
        )


@registered_if_named(BBOX_ASSIGNERS, builds=('BBox3DL1Cost',))
class HungarianAssigner3D(BaseAssigner):
    """Match queries with 3D boxes by classification cost and weighted L1 distance of the regression targets.

    The costs are configs of match costs; None takes the class's probability and the L1 distance with the
    weight 1. `iou_cost` is accepted and built, never used (configs give it weight 0); `pc_range` is x, y, z
    low and high in m, which nothing needs.
    """

    def __init__(
        self,
        cls_cost: dict | None = None,
        reg_cost: dict | None = None,
        iou_cost: dict | None = None,
        pc_range: list[float] | None = None,
    ) -> None:
        self.cls_cost = build_match_cost(cls_cost or dict(type='ClassificationCost', weight=1.0))
        self.reg_cost = build_match_cost(reg_cost or dict(type='BBox3DL1Cost', weight=1.0))
        self.iou_cost = build_match_cost(iou_cost or dict(type='IoUCost', weight=0.0))
        self.pc_range = pc_range

    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_bboxes_ignore: Tensor | None = None,
        code_weights: Tensor | None = None,
        with_velo: bool = False,
    ) -> AssignResult:
        """Match the queries of one sample and one decoder layer.

        Predicted boxes are (Q, 10): x, y, z, logarithms of the sizes, sine and cosine of the yaw, velocity,
        as `normalize_bbox` writes them; logits (Q, K); ground truth is (G, 9):
        gravity centre, sizes, yaw, velocity, in m, rad, m/s in the LiDAR frame, and (G,) int64.
        `code_weights` (10,) are factors of the columns, None is 1 for all; `with_velo` says whether the
        velocity counts. ValueError: there are boxes to ignore.
        """
        refuse_ignored(gt_bboxes_ignore)
        if len(gt_bboxes) == 0 or len(bbox_pred) == 0:
            return to_result(None, gt_labels, len(bbox_pred))
        targets = normalize_bbox(gt_bboxes, self.pc_range)
        columns = None if with_velo else 8  # the last two of the ten are the velocity
        if code_weights is not None:
            bbox_pred, targets = bbox_pred * code_weights, targets * code_weights
        cost = self.cls_cost(cls_pred, gt_labels) + self.reg_cost(
            bbox_pred[:, :columns], targets[:, :columns]
        )
        return to_result(cost, gt_labels, len(bbox_pred))


@registered_if_named(BBOX_ASSIGNERS, builds=('BBox3DL1Cost',))
class HungarianAssigner2D(BaseAssigner):
    """Match image tokens with 2D boxes by class, L1 and GIoU of boxes and L1 of projected 3D centres.

    The costs are configs of mmdet's match costs; None takes the class's probability, the L1 distances and the
    GIoU with the weight 1.
    """

    def __init__(
        self,
        cls_cost: dict | None = None,
        reg_cost: dict | None = None,
        iou_cost: dict | None = None,
        centers2d_cost: dict | None = None,
    ) -> None:
        self.cls_cost = build_match_cost(cls_cost or dict(type='ClassificationCost', weight=1.0))
        self.reg_cost = build_match_cost(reg_cost or dict(type='BBoxL1Cost', weight=1.0))
        self.iou_cost = build_match_cost(iou_cost or dict(type='IoUCost', iou_mode='giou', weight=1.0))
        self.centers2d_cost = build_match_cost(centers2d_cost or dict(type='BBox3DL1Cost', weight=1.0))

    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        pred_centers2d: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        centers2d: Tensor,
        img_meta: dict,
        gt_bboxes_ignore: Tensor | None = None,
    ) -> AssignResult:
        """Match the tokens of one image, whose `pad_shape` is (H, W, C).

        Predicted boxes (T, 4) cxcywh and centres (T, 2) are relative to the padded image's size, in 0..1,
        `cls_pred` logits (T, K). Ground truth are boxes (G, 4) xyxy, labels (G,) and projected 3D centres
        (G, 2), in pixels; mmdet's L1 cost brings both kinds of boxes into one form. ValueError: there are
        boxes to ignore.
        """
        refuse_ignored(gt_bboxes_ignore)
        if len(gt_bboxes) == 0 or len(bbox_pred) == 0:
            return to_result(None, gt_labels, len(bbox_pred))
        height, width = img_meta['pad_shape'][:2]
        size = gt_bboxes.new_tensor([width, height, width, height])
        cost = self.cls_cost(cls_pred, gt_labels.long()) + self.reg_cost(bbox_pred, gt_bboxes / size)
        cost = cost + self.iou_cost(bbox_cxcywh_to_xyxy(bbox_pred) * size, gt_bboxes)
        cost = cost + self.centers2d_cost(pred_centers2d, centers2d / size[:2])
        return to_result(cost, gt_labels, len(bbox_pred))


@registered_if_named(MATCH_COST)
class BBox3DL1Cost:
    """L1 distance of two sets of vectors, of any number of columns, times `weight`.

    Source: DETR3D `core/bbox/match_costs/match_cost.py`.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, bbox_pred: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Return the cost (num_pred, num_gt) of predictions (num_pred, D) and ground truth (num_gt, D)."""
        return torch.cdist(bbox_pred, gt_bboxes, p=1) * self.weight
