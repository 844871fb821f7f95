"""Matching equals the best of all permutations; empty, NaN and infinite inputs have determinate results."""

from __future__ import annotations

import itertools

import pytest
import torch
from mmdet.core.bbox.builder import build_assigner

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.models.streampetr import assigners  # noqa: F401
from mmdeploy_ext.models.streampetr.coder import denormalize_bbox, normalize_bbox

ASSIGNER_2D = toy.roi_head()['train_cfg']['assigner2d']
CODE_WEIGHTS = torch.tensor([2.0, 2.0, 1, 1, 1, 1, 1, 1, 1, 1])


def random_case(num_query: int, num_gt: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Return predicted boxes, logits, boxes (n, 9) and labels."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(num_gt, 9, generator=generator) * 4 + 0.5
    preds = normalize_bbox(torch.rand(num_query, 9, generator=generator) * 4 + 0.5)
    labels = torch.randint(0, 10, (num_gt,), generator=generator)
    return preds, torch.randn(num_query, 10, generator=generator), boxes, labels


def focal_cost(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The classification cost of DETR-like detectors, written out: focal terms, gamma 2, times 2."""
    p = logits.sigmoid()[:, labels]
    return 2.0 * (-0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log())


def cheapest(cost: torch.Tensor) -> float:
    """The cost of the best matching, by trying all."""
    rows, columns = cost.shape
    return min(
        sum(float(cost[r, c]) for c, r in enumerate(p)) for p in itertools.permutations(range(rows), columns)
    )


def test_without_costs_of_a_config_boxes_are_matched_by_their_distance():
    _, _, boxes, labels = random_case(1, 4, 0)
    logits = torch.zeros(4, 10)
    result = build_assigner(dict(type='HungarianAssigner3D')).assign(
        normalize_bbox(boxes.flip(0)), logits, boxes, labels
    )
    assert result.gt_inds.tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize('with_velo', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_3d_matching_is_the_cheapest_of_all(seed: int, with_velo: bool):
    preds, logits, boxes, labels = random_case(6, 4, seed)
    result = build_assigner(toy.pts_train_cfg()['assigner']).assign(
        preds, logits, boxes, labels, None, CODE_WEIGHTS, with_velo
    )
    columns = 10 if with_velo else 8
    distance = ((preds[:, None] - normalize_bbox(boxes)[None]).abs() * CODE_WEIGHTS)[..., :columns].sum(-1)
    cost = focal_cost(logits, labels) + 0.25 * distance
    rows = result.gt_inds.nonzero().squeeze(1)
    assert sorted(result.gt_inds[rows].tolist()) == [1, 2, 3, 4]
    assert cost[rows, result.gt_inds[rows] - 1].sum().item() == pytest.approx(cheapest(cost), abs=1e-5)
    assert torch.equal(result.labels[rows], labels[result.gt_inds[rows] - 1])


def test_velocity_counts_only_where_asked():
    preds, logits, boxes, labels = random_case(2, 1, 0)
    logits[:] = 0
    preds[:] = normalize_bbox(boxes)
    preds[0, 8:] += 5
    preds[1, 0] += 0.5
    assigner = build_assigner(toy.pts_train_cfg()['assigner'])
    assert assigner.assign(preds, logits, boxes, labels, with_velo=False).gt_inds.tolist() == [1, 0]
    assert assigner.assign(preds, logits, boxes, labels, with_velo=True).gt_inds.tolist() == [0, 1]


def test_more_boxes_than_queries_leave_boxes_unmatched():
    result = build_assigner(toy.pts_train_cfg()['assigner']).assign(*random_case(2, 5, 1))
    assert (result.gt_inds > 0).all()
    assert len(set(result.gt_inds.tolist())) == 2


def test_no_boxes_make_every_query_background():
    preds, logits, boxes, labels = random_case(3, 0, 0)
    result = build_assigner(toy.pts_train_cfg()['assigner']).assign(preds, logits, boxes, labels)
    assert result.gt_inds.tolist() == [0, 0, 0]
    assert result.labels.tolist() == [-1, -1, -1]


def test_nan_predictions_are_matched_last():
    preds, logits, boxes, labels = random_case(3, 2, 2)
    preds[1] = float('nan')
    result = build_assigner(toy.pts_train_cfg()['assigner']).assign(preds, logits, boxes, labels)
    assert result.gt_inds[1] == 0


def test_boxes_to_ignore_are_refused():
    preds, logits, boxes, labels = random_case(3, 2, 2)
    with pytest.raises(ValueError, match='gt_bboxes_ignore'):
        build_assigner(toy.pts_train_cfg()['assigner']).assign(preds, logits, boxes, labels, boxes)


@pytest.mark.parametrize('seed', range(3))
def test_2d_matching_is_the_cheapest_of_all(seed: int):
    generator = torch.Generator().manual_seed(seed)
    preds, logits = torch.rand(5, 4, generator=generator) * 0.4 + 0.1, torch.randn(5, 10, generator=generator)
    centers = torch.rand(5, 2, generator=generator)
    corner = torch.rand(3, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(3, 2, generator=generator) * 20], 1)
    labels, gt_centers = torch.tensor([1, 4, 1]), torch.rand(3, 2, generator=generator) * 60
    result = build_assigner(ASSIGNER_2D).assign(
        preds, logits, centers, boxes, labels, gt_centers, {'pad_shape': (32, 96, 3)}
    )
    size = torch.tensor([96.0, 32, 96, 32])
    relative = boxes / size
    cxcywh = torch.cat([(relative[:, :2] + relative[:, 2:]) / 2, relative[:, 2:] - relative[:, :2]], 1)
    pixels = torch.cat([preds[:, :2] - preds[:, 2:] / 2, preds[:, :2] + preds[:, 2:] / 2], 1) * size
    cost = focal_cost(logits, labels) + 5.0 * (preds[:, None] - cxcywh[None]).abs().sum(-1)
    cost = cost - 2.0 * giou(pixels, boxes)
    cost = cost + 10.0 * (centers[:, None] - (gt_centers / size[:2])[None]).abs().sum(-1)
    rows = result.gt_inds.nonzero().squeeze(1)
    assert cost[rows, result.gt_inds[rows] - 1].sum().item() == pytest.approx(cheapest(cost), abs=1e-4)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU (n, m) of xyxy boxes, written out."""
    a, b = a[:, None], b[None]
    inner = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union - (outer - union) / outer


@pytest.mark.parametrize('columns', [7, 9])
def test_box_codec_comes_back(columns: int):
    boxes = torch.rand(5, columns) * 3 + 0.1
    boxes[:, 6] = torch.linspace(-3, 3, 5)
    normalized = normalize_bbox(boxes, toy.PC_RANGE)
    assert normalized.shape == (5, columns + 1)
    torch.testing.assert_close(denormalize_bbox(normalized, toy.PC_RANGE), boxes)
    torch.testing.assert_close(normalized[:, 3:6], boxes[:, 3:6].log())
