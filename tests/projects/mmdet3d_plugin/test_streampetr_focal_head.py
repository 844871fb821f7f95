"""The 2D head: checkpoint keys, decoded boxes and centres, heat maps, losses with and without boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models import build_head

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.models.streampetr import assigners  # noqa: F401
from mmdeploy_ext.models.streampetr.focal_head import draw_heatmap

STATE_DICT = Path(__file__).resolve().parents[3].parent / 'shared/golden/streampetr/state_dict.json'
FEATURES = (2, toy.NUM_CAMS, toy.EMBED, 2, 6)
LOCATION = torch.stack(
    torch.meshgrid((torch.arange(6) * 16 + 8) / 96, (torch.arange(2) * 16 + 8) / 32, indexing='xy'), -1
)[None]


def make(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return build_head(toy.roi_head(**changes))


def annotations(numbers: tuple[int, ...], seed: int = 0) -> tuple[list, ...]:
    """Boxes, labels, centres, depths as [B][N] of two samples."""
    rng = np.random.default_rng(seed)
    samples = [[toy.boxes_2d(number, rng) for number in numbers] for _ in range(2)]
    return tuple([[camera[i] for camera in sample] for sample in samples] for i in range(4))


METAS = [{'pad_shape': [(32, 96, 3)] * 6}] * 2


def test_state_dict_is_that_of_the_checkpoints():
    if not STATE_DICT.exists():
        pytest.skip('skipped: ../shared/golden/streampetr/state_dict.json not found')
    keys = json.loads(STATE_DICT.read_text())['keys']
    rows = keys.items() if isinstance(keys, dict) else ((row['key'], row) for row in keys)
    expected = {
        key[len('img_roi_head.') :]: row['shape'] for key, row in rows if key.startswith('img_roi_head.')
    }
    state = make(in_channels=256).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)


def test_a_state_dict_without_metadata_loads():
    head = make()
    head.load_state_dict({key: value + 1 for key, value in head.state_dict().items()}, strict=True)


def test_outputs_are_boxes_and_centres_around_the_tokens():
    head = make().eval()
    with torch.no_grad():
        for layer in (head.ltrb, head.center2d):
            layer.weight.zero_()
            layer.bias.zero_()
        head.ltrb.bias.fill_(-5.0)
        outs = head(LOCATION, torch.randn(FEATURES))
    assert outs['enc_cls_scores'].shape == (12, 12, 10)
    assert outs['centerness'].shape == (12, 12, 1)
    flat = LOCATION.reshape(1, 12, 2).expand(12, 12, 2)
    torch.testing.assert_close(outs['pred_centers2d'], flat)
    torch.testing.assert_close(outs['enc_bbox_preds'][..., :2], flat)
    size = 2 * torch.sigmoid(torch.tensor(-5.0))
    torch.testing.assert_close(outs['enc_bbox_preds'][..., 2:], size.expand(12, 12, 2))


def test_boxes_end_at_the_image():
    head = make().eval()
    with torch.no_grad():
        head.ltrb.bias.fill_(20.0)
        boxes = head(LOCATION, torch.randn(FEATURES))['enc_bbox_preds']
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(boxes))


def test_the_best_tokens_are_chosen():
    head = make(infer_ratio=0.25).eval()
    features = torch.randn(FEATURES)
    with torch.no_grad():
        outs = head(LOCATION, features)
    weight = outs['enc_cls_scores'].max(-1).values.sigmoid() * outs['centerness'][..., 0].sigmoid()
    expected = weight.view(2, 72).sort(dim=1, descending=True).indices[:, :18]
    assert torch.equal(outs['topk_indexes'][..., 0], expected)
    head.infer_ratio = 1.0
    assert head(LOCATION, features)['topk_indexes'] is None


def test_hybrid_tokens_keep_a_random_part_in_training():
    head = make(use_hybrid_tokens=True).train()
    counts = {head(LOCATION, torch.randn(FEATURES))['topk_indexes'].shape[1] for _ in range(6)}
    assert len(counts) > 1
    assert all(14 <= count < 72 for count in counts)


def slow_heatmap(
    centers: torch.Tensor, boxes: torch.Tensor, shape: tuple[int, int], stride: int
) -> torch.Tensor:
    """Pixel by pixel."""
    heatmap = torch.zeros(shape)
    for (cx, cy), (x1, y1, x2, y2) in zip(centers.tolist(), boxes.tolist(), strict=True):
        radius = max(int(np.ceil(min(cx - x1, cy - y1, x2 - cx, y2 - cy) / stride)), 1)
        sigma, column, row = (2 * radius + 1) / 6, int(cx / stride), int(cy / stride)
        for y, x in np.ndindex(shape):
            if abs(y - row) <= radius and abs(x - column) <= radius:
                value = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))
                heatmap[y, x] = max(heatmap[y, x].item(), value)
    return heatmap


@pytest.mark.parametrize('number', [0, 1, 7])
def test_heatmap_equals_the_slow_one(number: int):
    rng = np.random.default_rng(number)
    centers = torch.from_numpy(rng.uniform(0, 160, (number, 2)))
    boxes = torch.cat(
        [
            centers - torch.from_numpy(rng.uniform(1, 60, (number, 2))),
            centers + torch.from_numpy(rng.uniform(1, 60, (number, 2))),
        ],
        1,
    )
    heatmap = draw_heatmap(centers, boxes, (10, 10), 16)
    torch.testing.assert_close(heatmap.float(), slow_heatmap(centers, boxes, (10, 10), 16))
    assert int((heatmap == 1).sum()) == len({tuple(cell) for cell in (centers / 16).int().tolist()})


@pytest.mark.parametrize('numbers', [(0,) * 6, (2, 0, 1, 3, 0, 1)])
def test_losses_are_finite_and_reach_the_parameters(numbers: tuple[int, ...]):
    head = make().train()
    losses = head.loss(*annotations(numbers), head(LOCATION, torch.randn(FEATURES)), METAS)
    names = {'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou', 'centers2d_losses', 'centerness_losses'}
    assert set(losses) == names
    assert all(torch.isfinite(value) and value >= 0 for value in losses.values())
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    if not any(numbers):
        assert losses['enc_loss_bbox'] == losses['centers2d_losses'] == losses['enc_loss_iou'] == 0
    else:
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_a_perfect_prediction_has_no_box_loss():
    head = make().train()
    boxes, labels, centers, depths = annotations((1, 0, 0, 0, 0, 0))
    preds = head(LOCATION, torch.randn(FEATURES))
    size = torch.tensor([96.0, 32, 96, 32])
    for sample in range(2):
        x1, y1, x2, y2 = (boxes[sample][0][0] / size).tolist()
        with torch.no_grad():
            preds['enc_bbox_preds'][6 * sample, 3] = torch.tensor(
                [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            )
            preds['pred_centers2d'][6 * sample, 3] = centers[sample][0][0] / size[:2]
    losses = head.loss(boxes, labels, centers, depths, preds, METAS)
    for name in ('enc_loss_bbox', 'enc_loss_iou', 'centers2d_losses'):
        assert losses[name].item() == pytest.approx(0, abs=1e-4)


def test_annotations_of_another_camera_count_are_refused():
    head = make().train()
    outs = head(LOCATION, torch.randn(FEATURES))
    with pytest.raises(ValueError, match=r'10.*10.*10.*12'):
        head.loss(*annotations((1,) * 5), outs, METAS)
