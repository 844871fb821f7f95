"""Denoising queries: noised ground truth that the decoder learns to repair, beside the learned queries.

Source: DN-DETR (Li et al., 2022), as StreamPETR's `prepare_for_dn` has it. The decoder's rows are
[denoising | learned | propagated], its self-attention keys [denoising | learned | memory_len of memory].
Differs in: no ground truth in the whole batch is a case of its own (upstream divides by zero); only samples
with fewer boxes than the largest one have padding rows, as upstream.
"""

from typing import NamedTuple

import torch
from mmcv.parallel import DataContainer
from torch import Tensor, nn


class Known(NamedTuple):
    """The K boxes of a batch, repeated once per noise group.

    Attributes:
        batch: (K,) int64, sample of each.
        slot: (K,) int64, row among the denoising queries of its sample.
        labels: (K,) int64.
        bboxes: (K, 9) gravity centre, sizes, yaw, velocity; LiDAR frame.
    """

    batch: Tensor
    slot: Tensor
    labels: Tensor
    bboxes: Tensor


def unwrap(value: object) -> object:
    """Return what a DataContainer holds; anything else as it is."""
    return value.data if isinstance(value, DataContainer) else value


def to_targets(boxes: object, device: torch.device) -> Tensor:
    """Return LiDARInstance3DBoxes as (n, 9): gravity centre, then the remaining columns as they are."""
    return torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1).to(device)


def collect(img_metas: list[dict], groups: int, device: torch.device) -> tuple[Known, int]:
    """Return the ground truth of a batch for `groups` noise groups, and the rows that one group takes."""
    targets = [to_targets(unwrap(meta['gt_bboxes_3d']), device) for meta in img_metas]
    labels = [unwrap(meta['gt_labels_3d']).to(device).long() for meta in img_metas]
    single = max(len(target) for target in targets)
    batch = torch.cat([torch.full((len(t),), i, device=device) for i, t in enumerate(targets)])
    slot = torch.cat([torch.arange(len(t), device=device) for t in targets])
    group = torch.arange(groups, device=device).repeat_interleave(len(batch))
    slots = slot.repeat(groups) + single * group
    rows = torch.cat(labels).repeat(groups), torch.cat(targets).repeat(groups, 1)
    return Known(batch.repeat(groups), slots, *rows), single


def add_noise(objects: Known, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return noised centres (K, 3) in parts of the range, clamped to [0, 1], and labels (K,).

    A centre moves by up to half its box times `noise_scale` along each axis; one that moved by more than
    `split` of that (Euclidean norm of the three parts) becomes background.
    """
    low, high = head.pc_range[:3], head.pc_range[3:6]
    shift = torch.rand_like(objects.bboxes[:, :3]) * 2 - 1
    reach = objects.bboxes[:, 3:6] / 2 + head.bbox_noise_trans
    centers = objects.bboxes[:, :3] + shift * reach * head.bbox_noise_scale
    labels = objects.labels
    if head.bbox_noise_scale > 0:
        labels = labels.masked_fill(shift.norm(dim=1) > head.split, head.num_classes)
    return ((centers - low) / (high - low)).clamp(0.0, 1.0), labels


def attention_mask(head: nn.Module, single: int, groups: int, device: torch.device) -> Tensor:
    """Return the self-attention mask (rows, keys), True where a row must not look.

    Rows: denoising, learned and propagated queries. Keys: denoising and learned queries, `memory_len` rows of
    memory, the propagated ones first. A group sees itself, the learned queries and the memory; learned and
    propagated queries see no group.
    """
    pad = single * groups
    rows = pad + head.num_query + head.num_propagated
    keys = pad + head.num_query + head.memory_len
    row_group = torch.full((rows, 1), -1, device=device)
    row_group[:pad, 0] = torch.arange(groups, device=device).repeat_interleave(single)
    mask = torch.zeros(rows, keys, dtype=torch.bool, device=device)
    mask[:, :pad] = row_group != row_group[:pad].T
    return mask


def prepare(
    head: nn.Module, batch_size: int, reference_points: Tensor, img_metas: list[dict]
) -> tuple[Tensor, Tensor | None, dict | None]:
    """Put denoising queries before the learned ones, whose points are (Q, 3) in parts of the range.

    In training the metas have `gt_bboxes_3d` and `gt_labels_3d`, in a DataContainer or not. The head gives
    num_query, num_propagated, memory_len, num_classes, pc_range, with_dn, scalar (groups), bbox_noise_scale,
    bbox_noise_trans, split, training.

    Returns:
        Reference points (B, pad + Q, 3), the attention mask (None without denoising queries) and what
        `losses.head_losses` needs: `pad_size`, `known` and the noised `labels` (None likewise). pad is
        `scalar` times the largest number of boxes in a sample.
    """
    points = reference_points.unsqueeze(0).repeat(batch_size, 1, 1)
    if not (head.training and head.with_dn):
        return points, None, None
    objects, single = collect(img_metas, head.scalar, points.device)
    if single == 0:
        return points, None, None
    centers, labels = add_noise(objects, head)
    pad = single * head.scalar
    noised = points.new_zeros(batch_size, pad, 3).index_put((objects.batch, objects.slot), centers.to(points))
    mask = attention_mask(head, single, head.scalar, points.device)
    return torch.cat([noised, points], dim=1), mask, {'pad_size': pad, 'known': objects, 'labels': labels}
