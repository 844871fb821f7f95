"""The training of the 3D head: denoising queries, and the losses of every decoder layer.

Denoising queries are noised ground truth that the decoder learns to repair, beside the learned queries. The
decoder's rows are [denoising | learned | propagated], its self-attention keys [denoising | learned |
memory_len of memory]. Every layer is matched by itself; denoising queries know their box.

Source: StreamPETR `models/dense_heads/streampetr_head.py` (`prepare_for_dn`, `loss`, `loss_single`,
`dn_loss_single`), after DN-DETR (Li et al., 2022). Differs in: a batch without any box is a case of its own
(upstream divides by zero), and still has all losses (ranks of one run must log the same ones); a loss that is
NaN stays NaN instead of becoming 0, so that mmcv's CheckInvalidLossHook sees it. As upstream, only samples
with fewer boxes than the largest one have padding rows.

`head` is a `StreamPETRHead` (`head.py`), built by its `HeadLayers` (`head_layers.py`). Of the configs are its
`assigner`, such as `HungarianAssigner3D`, `loss_cls`, one of mmdet's with sigmoids, such as FocalLoss, and
`loss_bbox`, L1Loss as a rule; `code_weights` and `match_costs` are tensors (10,).

Glossary: B samples, L decoder layers, Q queries, the learned, then the propagated ones, K classes, n boxes of
a sample, G boxes of all samples, repeated once per noise group.
"""

from typing import NamedTuple

import torch
from mmcv.parallel import DataContainer
from mmdet.core import reduce_mean
from torch import Tensor, nn

from mmdeploy_ext.models.streampetr.coder import normalize_bbox

POSITIVE_PART_OF_CUBE = 3.14159 / 6
"""Part of a cube that the ball inside it takes."""


class GroundTruth(NamedTuple):
    """The G boxes of a batch, repeated once per noise group.

    Attributes:
        batch: (G,) int64, sample of each.
        slot: (G,) int64, row among the denoising queries of its sample.
        labels: (G,) int64.
        bboxes: (G, 9) gravity centre, sizes, yaw, velocity; LiDAR frame.
    """

    batch: Tensor
    slot: Tensor
    labels: Tensor
    bboxes: Tensor


def unwrap(value: object) -> object:
    """Return the content of a DataContainer; any other value unchanged."""
    return value.data if isinstance(value, DataContainer) else value


def to_targets(boxes: object, device: torch.device) -> Tensor:
    """Return LiDARInstance3DBoxes as (n, 9): gravity centre, then sizes, yaw and velocity as they are.

    The sizes keep their order, that of the boxes: length, width and height in mmdet3d 1.0.
    """
    return torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1).to(device)


def collect(img_metas: list[dict], groups: int, device: torch.device) -> tuple[GroundTruth, int]:
    """Return the ground truth of a batch for `groups` noise groups, and the rows that one group takes.

    The metas are those of `prepare_denoising`; a group takes as many rows as the sample with most boxes has.
    """
    targets = [to_targets(unwrap(meta['gt_bboxes_3d']), device) for meta in img_metas]
    labels = [unwrap(meta['gt_labels_3d']).to(device).long() for meta in img_metas]
    single = max(len(target) for target in targets)
    batch = torch.cat([torch.full((len(t),), i, device=device) for i, t in enumerate(targets)])
    slot = torch.cat([torch.arange(len(t), device=device) for t in targets])
    group = torch.arange(groups, device=device).repeat_interleave(len(batch))
    slots = slot.repeat(groups) + single * group
    rows = torch.cat(labels).repeat(groups), torch.cat(targets).repeat(groups, 1)
    return GroundTruth(batch.repeat(groups), slots, *rows), single


def add_noise(truth: GroundTruth, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return noised centres (G, 3) relative to the range, clamped to [0, 1], and labels (G,).

    A centre moves by up to (half its box + `noise_trans` in m) times `noise_scale` along each axis; one that
    moved by more than `split` of that (Euclidean norm of the three parts) becomes background.
    """
    low, high = head.pc_range[:3], head.pc_range[3:6]
    shift = torch.rand_like(truth.bboxes[:, :3]) * 2 - 1
    reach = truth.bboxes[:, 3:6] / 2 + head.bbox_noise_trans
    centers = truth.bboxes[:, :3] + shift * reach * head.bbox_noise_scale
    labels = truth.labels
    if head.bbox_noise_scale > 0:
        labels = labels.masked_fill(shift.norm(dim=1) > head.split, head.num_classes)
    return ((centers - low) / (high - low)).clamp(0.0, 1.0), labels


def attention_mask(head: nn.Module, single: int, groups: int, device: torch.device) -> Tensor:
    """Return the self-attention mask (rows, keys), True if a row must not look at a key.

    Rows: denoising, learned and propagated queries. Keys: denoising and learned queries, `memory_len` rows of
    memory, the propagated ones first. A group sees itself, the learned queries and the memory; learned and
    propagated queries see no group. There are `groups` groups of `single` denoising queries.
    """
    pad = single * groups
    rows = pad + head.num_query + head.num_propagated
    keys = pad + head.num_query + head.memory_len
    row_group = torch.full((rows, 1), -1, device=device)
    row_group[:pad, 0] = torch.arange(groups, device=device).repeat_interleave(single)
    mask = torch.zeros(rows, keys, dtype=torch.bool, device=device)
    mask[:, :pad] = row_group != row_group[:pad].T
    return mask


def prepare_denoising(
    head: nn.Module, batch_size: int, reference_points: Tensor, img_metas: list[dict]
) -> tuple[Tensor, Tensor | None, dict | None]:
    """Put denoising queries before the learned ones, whose points are (num_query, 3) relative to the range.

    In training the metas have `gt_bboxes_3d` and `gt_labels_3d`, in a DataContainer or not. The head gives
    num_query, num_propagated, memory_len, num_classes, pc_range, with_dn, scalar (groups), bbox_noise_scale,
    bbox_noise_trans, split, training.

    Returns:
        Reference points (B, pad + num_query, 3), the attention mask, and the dict for `head_losses`:
        `pad_size`, which is pad, `known`, a `GroundTruth`, and the noised `labels` (G,); mask and dict are
        None without denoising queries. pad is `scalar` times the largest number of boxes in a sample.
    """
    points = reference_points.unsqueeze(0).repeat(batch_size, 1, 1)
    if not (head.training and head.with_dn):
        return points, None, None
    truth, single = collect(img_metas, head.scalar, points.device)
    if single == 0:
        return points, None, None
    centers, labels = add_noise(truth, head)
    pad = single * head.scalar
    noised = points.new_zeros(batch_size, pad, 3).index_put((truth.batch, truth.slot), centers.to(points))
    mask = attention_mask(head, single, head.scalar, points.device)
    return torch.cat([noised, points], dim=1), mask, {'pad_size': pad, 'known': truth, 'labels': labels}


def head_losses(
    head: nn.Module, gt_bboxes_list: list, gt_labels_list: list[Tensor], preds_dicts: dict
) -> dict:
    """Return the losses of one frame.

    Args:
        head: has the attributes assigner, match_costs, match_with_velo, code_weights, pc_range, num_classes,
            loss_cls, loss_bbox, split, dn_weight, with_dn, sync_cls_avg_factor, training.
        gt_bboxes_list: B LiDARInstance3DBoxes.
        gt_labels_list: B tensors (n,) int64.
        preds_dicts: `all_cls_scores` (L, B, Q, K) logits, `all_bbox_preds` (L, B, Q, 10): x, y, z (m),
            logarithms of the sizes, sine and cosine of the yaw, velocity (m/s), as `normalize_bbox`
            has them; `dn_mask_dict`: None, or the dict of `prepare_denoising` and
            `output_known_lbs_bboxes`, the pair (L, B, pad, ...) of logits and boxes of the denoising queries.

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
    """Return the pairs of losses (classes, boxes) of L layers under upstream's names.

    Layer i has `d{i}.` before the name, the last layer nothing; `prefix` comes right before 'loss_cls' and
    'loss_bbox', as in 'd0.dn_loss_cls'.
    """
    named = {f'{prefix}loss_cls': layers[-1][0], f'{prefix}loss_bbox': layers[-1][1]}
    for i, (cls, bbox) in enumerate(layers[:-1]):
        named[f'd{i}.{prefix}loss_cls'], named[f'd{i}.{prefix}loss_bbox'] = cls, bbox
    return named


def layer_losses(
    head: nn.Module, scores: Tensor, boxes: Tensor, targets: list[Tensor], labels: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return classification and box loss of one decoder layer.

    Logits are (B, Q, K), boxes (B, Q, 10); of each sample there are targets (n, 9) and labels (n,). Losses
    are divided by the number of matched queries, see `classification_loss` and `box_loss`.
    """
    target_labels = labels[0].new_full(scores.shape[:2], head.num_classes)
    matched, matched_targets = [], []
    for i, (target, label) in enumerate(zip(targets, labels, strict=True)):
        weights = head.match_costs
        assigned = head.assigner.assign(
            boxes[i], scores[i], target, label, None, weights, head.match_with_velo
        )
        rows = assigned.gt_inds.nonzero().squeeze(1)
        objects = assigned.gt_inds[rows] - 1
        target_labels[i, rows] = label[objects]
        matched.append(boxes[i, rows])
        matched_targets.append(target[objects])
    positives = sum(len(rows) for rows in matched)
    cls = classification_loss(head, scores, target_labels, positives)
    return cls, box_loss(head, torch.cat(matched), torch.cat(matched_targets), positives)


def classification_loss(head: nn.Module, scores: Tensor, labels: Tensor, positives: float) -> Tensor:
    """Return the loss of logits (..., K) against labels (...), divided by max(positives, 1).

    If `head.sync_cls_avg_factor` is True, the ranks' mean of `positives` is taken.
    """
    factor = scores.new_tensor(float(positives))
    if head.sync_cls_avg_factor:
        factor = reduce_mean(factor)
    ones, factor = scores.new_ones(labels.numel()), factor.clamp(min=1).item()
    return head.loss_cls(scores.flatten(0, -2), labels.flatten(), ones, avg_factor=factor)


def box_loss(head: nn.Module, boxes: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the weighted L1 loss of boxes (n, 10) to targets (n, 9), divided by the ranks' mean `count`.

    It is divided by 1 at least. Targets that have no finite form (a size of 0, a NaN velocity) are left out.
    """
    codes = normalize_bbox(targets, head.pc_range)
    finite = torch.isfinite(codes).all(dim=-1)
    factor = reduce_mean(boxes.new_tensor([float(count)])).clamp(min=1).item()
    weights = head.code_weights.expand_as(codes)
    return head.loss_bbox(boxes[finite], codes[finite], weights[finite], avg_factor=factor)


def denoising_losses(head: nn.Module, mask_dict: dict) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of losses of L layers of the denoising queries, which know their box.

    `mask_dict` is that of `preds_dicts` of `head_losses`. Queries whose label became background have a box
    loss, too, as upstream.
    """
    truth, labels = mask_dict['known'], mask_dict['labels']
    all_scores, all_boxes = mask_dict['output_known_lbs_bboxes']
    count = len(labels)
    # the positives are those whose shift, of a cube of side 2, is in the ball of radius `split`
    positives = count * POSITIVE_PART_OF_CUBE * head.split**3
    layers = []
    for scores, boxes in zip(all_scores.float(), all_boxes.float(), strict=True):
        cls = classification_loss(head, scores[truth.batch, truth.slot], labels, positives)
        bbox = box_loss(head, boxes[truth.batch, truth.slot], truth.bboxes, count)
        layers.append((head.dn_weight * cls, head.dn_weight * bbox))
    return layers
