"""Losses of the 3D head: every decoder layer is matched by itself, denoising queries know their box.

Source: StreamPETR `models/dense_heads/streampetr_head.py` (`loss`, `loss_single`, `dn_loss_single`).
Differs in: a loss that is NaN stays NaN instead of becoming 0, so that mmcv's CheckInvalidLossHook sees it;
a batch without any box still has all keys (ranks of one run must log the same ones).
"""

import torch
from mmdet.core import reduce_mean
from torch import Tensor, nn

from mmdeploy_ext.models.streampetr.coder import normalize_bbox

from .denoising import to_targets

POSITIVE_PART_OF_CUBE = 3.14159 / 6


def head_losses(
    head: nn.Module, gt_bboxes_list: list, gt_labels_list: list[Tensor], preds_dicts: dict
) -> dict:
    """Return the losses of one frame.

    Args:
        head: gives assigner, match_costs, match_with_velo, code_weights, pc_range, num_classes, loss_cls,
            loss_bbox, split, dn_weight, with_dn, sync_cls_avg_factor, training.
        gt_bboxes_list: B LiDARInstance3DBoxes.
        gt_labels_list: B tensors (n,) int64.
        preds_dicts: `all_cls_scores` (L, B, Q, K) logits, `all_bbox_preds` (L, B, Q, 10), `dn_mask_dict`:
            None, or what `denoising.prepare` gave plus `output_known_lbs_bboxes`, the pair (L, B, pad, ...)
            of logits and boxes of the denoising queries.

    Returns:
        `loss_cls`, `loss_bbox` of the last layer, `d0.loss_cls`... of the others; with denoising the same
        names with `dn_` before `loss`.
    """
    scores, boxes = preds_dicts['all_cls_scores'].float(), preds_dicts['all_bbox_preds'].float()
    targets = [to_targets(gt, scores.device) for gt in gt_bboxes_list]
    labels = [gt.to(scores.device).long() for gt in gt_labels_list]
    layers = [layer_losses(head, s, b, targets, labels) for s, b in zip(scores, boxes, strict=True)]
    losses = name_layers(layers, '')
    mask_dict = preds_dicts.get('dn_mask_dict')
    if mask_dict is not None:
        losses.update(name_layers(denoising_losses(head, mask_dict), 'dn_'))
    elif head.with_dn and head.training:
        zero = scores.new_zeros(())
        losses.update(name_layers([(zero, zero)] * len(scores), 'dn_'))
    return losses


def name_layers(layers: list[tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Return the pairs of losses of L layers under upstream's names; the last layer has no number."""
    named = {f'{prefix}loss_cls': layers[-1][0], f'{prefix}loss_bbox': layers[-1][1]}
    for i, (cls, bbox) in enumerate(layers[:-1]):
        named[f'd{i}.{prefix}loss_cls'], named[f'd{i}.{prefix}loss_bbox'] = cls, bbox
    return named


def layer_losses(
    head: nn.Module, scores: Tensor, boxes: Tensor, targets: list[Tensor], labels: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return classification and box loss of one decoder layer.

    Logits are (B, Q, K), boxes (B, Q, 10); of each sample there are targets (n, 9) and labels (n,).
    """
    target_labels = labels[0].new_full(scores.shape[:2], head.num_classes)
    matched, matched_targets = [], []
    for i, (target, label) in enumerate(zip(targets, labels, strict=True)):
        inds = head.assigner.assign(
            boxes[i], scores[i], target, label, None, head.match_costs, head.match_with_velo
        ).gt_inds
        rows = inds.nonzero().squeeze(1)
        objects = inds[rows] - 1
        target_labels[i, rows] = label[objects]
        matched.append(boxes[i, rows])
        matched_targets.append(target[objects])
    positives = sum(len(rows) for rows in matched)
    cls = classification_loss(head, scores, target_labels, positives)
    return cls, box_loss(head, torch.cat(matched), torch.cat(matched_targets), positives)


def classification_loss(head: nn.Module, scores: Tensor, labels: Tensor, positives: float) -> Tensor:
    """Return the loss of logits (..., K) against labels (...), divided by max(positives, 1)."""
    factor = scores.new_tensor(float(positives))
    if head.sync_cls_avg_factor:
        factor = reduce_mean(factor)
    ones, factor = scores.new_ones(labels.numel()), factor.clamp(min=1).item()
    return head.loss_cls(scores.flatten(0, -2), labels.flatten(), ones, avg_factor=factor)


def box_loss(head: nn.Module, boxes: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the weighted L1 loss of boxes (n, 10) to targets (n, 9), divided by the ranks' mean `count`.

    Targets that have no finite form (a size of 0, a NaN velocity) are left out.
    """
    codes = normalize_bbox(targets, head.pc_range)
    finite = torch.isfinite(codes).all(dim=-1)
    factor = reduce_mean(boxes.new_tensor([float(count)])).clamp(min=1).item()
    weights = head.code_weights.expand_as(codes)
    return head.loss_bbox(boxes[finite], codes[finite], weights[finite], avg_factor=factor)


def denoising_losses(head: nn.Module, mask_dict: dict) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of losses of L layers of the denoising queries, which know their box."""
    objects, labels = mask_dict['known'], mask_dict['labels']
    all_scores, all_boxes = mask_dict['output_known_lbs_bboxes']
    count = len(labels)
    # the part of the cube of shifts that is a ball of radius `split`, up to a factor: what stays a positive
    positives = count * POSITIVE_PART_OF_CUBE * head.split**3
    layers = []
    for scores, boxes in zip(all_scores.float(), all_boxes.float(), strict=True):
        cls = classification_loss(head, scores[objects.batch, objects.slot], labels, positives)
        bbox = box_loss(head, boxes[objects.batch, objects.slot], objects.bboxes, count)
        layers.append((head.dn_weight * cls, head.dn_weight * bbox))
    return layers
