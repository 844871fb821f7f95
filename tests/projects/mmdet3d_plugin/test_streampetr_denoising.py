"""Denoising queries: where they stand, what they may see, and that no other query feels them."""

from __future__ import annotations

import pytest
import torch
from mmcv.parallel import DataContainer

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.models.streampetr import training

GROUPS = 2


@pytest.fixture(scope='module')
def head() -> torch.nn.Module:
    return toy.build().pts_bbox_head.train()


def metas(counts: tuple[int, ...] = (3, 5), seed: int = 0) -> list[dict]:
    return [sample[0] for sample in toy.batch(tuple((count,) for count in counts), seed=seed)['img_metas']]


def prepare(head: torch.nn.Module, img_metas: list[dict], noise_seed: int = 0):
    torch.manual_seed(noise_seed)
    return training.prepare_denoising(head, len(img_metas), head.reference_points.weight, img_metas)


def run(head: torch.nn.Module, img_metas: list[dict], noise_seed: int) -> dict:
    """One frame of a new stream; the noise is all that the seed changes."""
    data = toy.batch(((3,), (5,)))
    frame = {
        key: value[:, 0] for key, value in data.items() if isinstance(value, torch.Tensor) and key != 'img'
    }
    features = torch.randn(2, toy.NUM_CAMS, toy.EMBED, 2, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(noise_seed)
    head.reset_memory()
    with torch.no_grad():
        return head(img_feats=features, img_metas=img_metas, **frame)


def test_rows_are_groups_of_the_largest_sample_and_then_the_learned_points(head: torch.nn.Module):
    points, mask, mask_dict = prepare(head, metas())
    pad = GROUPS * 5
    assert mask_dict['pad_size'] == pad
    assert points.shape == (2, pad + toy.NUM_QUERY, 3)
    assert torch.equal(points[:, pad:], head.reference_points.weight.expand(2, -1, -1))
    assert mask.shape == (pad + toy.NUM_QUERY + toy.NUM_PROPAGATED, pad + toy.NUM_QUERY + toy.MEMORY_LEN)
    padding = points[0].view(-1, 3)[[3, 4, 8, 9]]
    assert torch.equal(padding, torch.zeros(4, 3))


def test_noise_stays_within_half_a_box_and_far_shifts_are_background(head: torch.nn.Module):
    low, high = head.pc_range[:3], head.pc_range[3:]
    for seed in range(5):
        points, _, mask_dict = prepare(head, metas(seed=seed), seed)
        known = mask_dict['known']
        centers = points[known.batch, known.slot] * (high - low) + low
        shift = (centers - known.bboxes[:, :3]) / (known.bboxes[:, 3:6] / 2)
        assert shift.abs().max() <= 1.001
        far = shift.norm(dim=1) > head.split
        expected = torch.where(far, torch.tensor(head.num_classes), known.labels)
        assert torch.equal(mask_dict['labels'], expected)
        assert far.any()


def test_every_group_has_every_box(head: torch.nn.Module):
    img_metas = metas()
    _, _, mask_dict = prepare(head, img_metas)
    known = mask_dict['known']
    for sample, meta in enumerate(img_metas):
        wanted = training.to_targets(meta['gt_bboxes_3d'], torch.device('cpu'))
        for group in range(GROUPS):
            rows = (known.batch == sample) & (known.slot // 5 == group)
            assert torch.equal(known.bboxes[rows], wanted)
            assert torch.equal(known.labels[rows], meta['gt_labels_3d'])


def test_mask_row_by_row(head: torch.nn.Module):
    mask = training.attention_mask(head, 5, GROUPS, torch.device('cpu'))
    for row in range(mask.shape[0]):
        for key in range(mask.shape[1]):
            same_group = row < 10 and row // 5 == key // 5
            assert mask[row, key].item() == (key < 10 and not same_group)


def test_learned_queries_and_memory_do_not_feel_the_denoising_queries(head: torch.nn.Module):
    first, second = run(head, metas(seed=1), 1), run(head, metas(seed=2), 2)
    assert not torch.equal(
        first['dn_mask_dict']['output_known_lbs_bboxes'][1],
        second['dn_mask_dict']['output_known_lbs_bboxes'][1],
    )
    for key in ('all_cls_scores', 'all_bbox_preds'):
        torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=0)


def test_outputs_are_those_without_denoising(head: torch.nn.Module):
    first = run(head, metas(), 1)
    memory = head.memory
    head.eval()
    second = run(head, metas(), 1)
    head.train()
    assert second['dn_mask_dict'] is None
    for key in ('all_cls_scores', 'all_bbox_preds'):
        assert first[key].shape[2] == toy.NUM_QUERY + toy.NUM_PROPAGATED
        torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0)
    torch.testing.assert_close(memory.embedding, head.memory.embedding, atol=1e-4, rtol=0)


def test_without_the_mask_they_would_feel_it(head: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, 'attention_mask', lambda *_: None)
    first, second = run(head, metas(seed=1), 1), run(head, metas(seed=2), 2)
    assert (first['all_bbox_preds'] - second['all_bbox_preds']).abs().max() > 1e-3


def test_groups_do_not_see_each_other(head: torch.nn.Module):
    points, mask, _ = prepare(head, metas())
    changed = points.clone()
    changed[:, :5] = 0.9
    tokens, positions = torch.randn(2, 12, toy.EMBED), torch.randn(2, 12, toy.EMBED)
    run(head, metas(), 0)
    memory = type(head.memory)(*(rows[:, : toy.MEMORY_LEN] for rows in head.memory))
    memory = memory._replace(
        reference_point=memory.reference_point - memory.reference_point.mean(1, keepdim=True),
        timestamp=torch.zeros_like(memory.timestamp),
    )
    with torch.no_grad():
        one, other = (
            head.decode(tokens, positions, memory, head.queries_at(p), mask)[0] for p in (points, changed)
        )
    torch.testing.assert_close(one[:, :, 5:], other[:, :, 5:], atol=1e-5, rtol=0)
    assert (one[:, :, :5] - other[:, :, :5]).abs().max() > 1e-3


def test_no_boxes_no_denoising_queries(head: torch.nn.Module):
    points, mask, mask_dict = prepare(head, metas((0, 0)))
    assert points.shape == (2, toy.NUM_QUERY, 3)
    assert mask is None and mask_dict is None


def test_boxes_may_come_in_data_containers(head: torch.nn.Module):
    plain = metas()
    wrapped = [
        {
            **m,
            'gt_bboxes_3d': DataContainer(m['gt_bboxes_3d'], cpu_only=True),
            'gt_labels_3d': DataContainer(m['gt_labels_3d']),
        }
        for m in plain
    ]
    assert torch.equal(prepare(head, plain)[0], prepare(head, wrapped)[0])
