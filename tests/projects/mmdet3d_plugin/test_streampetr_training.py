"""Training of the whole toy detector: losses, gradients, frames without gradients, zero boxes, GridMask."""

from __future__ import annotations

import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.streampetr.detector import GridMask, without_gradients

LOSS_3D = {
    'loss_cls',
    'loss_bbox',
    'd0.loss_cls',
    'd0.loss_bbox',
    'dn_loss_cls',
    'dn_loss_bbox',
    'd0.dn_loss_cls',
    'd0.dn_loss_bbox',
}
LOSS_2D = {'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou', 'centers2d_losses', 'centerness_losses'}
LEARNING_RATE = 5e-3
CONSTANTS = {
    'code_weights',
    'match_costs',
    'pc_range',
    'position_range',
    'coords_d',
    'pseudo_reference_points.weight',
}


def train(model: torch.nn.Module, steps: int, **batch: object) -> tuple[list[float], set[str]]:
    """Overfit one batch, each step from an empty memory; return the losses and what had a gradient."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE)
    totals, reached = [], set()
    for _ in range(steps):
        model.pts_bbox_head.reset_memory()
        total = sum(model(return_loss=True, **toy.batch(**batch)).values())
        optimizer.zero_grad()
        total.backward()
        reached |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
        torch.nn.utils.clip_grad_norm_(trained.values(), 35)
        optimizer.step()
        totals.append(total.item())
    return totals, reached


@pytest.mark.matrix
def test_overfitting_one_batch_lowers_the_loss():
    totals, _ = train(toy.build(frames=2), 30, counts=((2, 1, 3), (1, 2, 2)))
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])


def test_losses_reach_every_parameter():
    model = toy.build(frames=2)
    _, reached = train(model, 3, counts=((2, 1, 3), (1, 2, 2)))
    constants = {f'pts_bbox_head.{name}' for name in CONSTANTS}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == constants
    missed = {name for name, _ in model.named_parameters()} - reached - constants
    assert missed == set()


def test_names_of_the_losses():
    losses = toy.build(frames=1)(return_loss=True, **toy.batch(((2, 1), (1, 2))))
    assert set(losses) == {f'frame_1_{name}' for name in LOSS_3D | LOSS_2D}
    assert all(value.dim() == 0 and torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize('counts', [((0,), (0,)), ((0,), (3,))])
def test_samples_without_boxes_have_finite_losses_of_the_same_names(counts: tuple):
    model = toy.build()
    losses = model(return_loss=True, **toy.batch(counts, numbers_2d=(0,) * 6))
    assert set(losses) == {f'frame_0_{name}' for name in LOSS_3D | LOSS_2D}
    assert all(torch.isfinite(value) for value in losses.values())
    if not sum(map(sum, counts)):
        assert losses['frame_0_loss_bbox'] == losses['frame_0_dn_loss_cls'] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_classification_loss_is_the_focal_loss_written_out():
    model = toy.build(head=dict(with_dn=False))
    data = toy.batch(((0,), (0,)))
    head, outputs = model.pts_bbox_head, {}
    head.register_forward_hook(lambda _module, _inputs, result: outputs.update(result))
    losses = model(return_loss=True, **data)
    p = outputs['all_cls_scores'][-1].sigmoid()
    expected = 2.0 * (0.75 * p**2 * -(1 - p).log()).sum()
    assert losses['frame_0_loss_cls'].item() == pytest.approx(expected.item(), rel=1e-4)


def test_box_loss_is_the_weighted_l1_of_the_matched_queries():
    model = toy.build(head=dict(with_dn=False))
    data = toy.batch(((1,), (0,)))
    head, outputs = model.pts_bbox_head, {}
    head.register_forward_hook(lambda _module, _inputs, result: outputs.update(result))
    losses = model(return_loss=True, **data)
    boxes = data['gt_bboxes_3d'][0][0]
    row = torch.cat(
        [
            boxes.gravity_center,
            boxes.tensor[:, 3:6].log(),
            boxes.tensor[:, 6:7].sin(),
            boxes.tensor[:, 6:7].cos(),
            boxes.tensor[:, 7:],
        ],
        1,
    )[0]
    distances = ((outputs['all_bbox_preds'][-1][0] - row).abs() * head.code_weights).sum(-1) * 0.25
    assert min((distances - losses['frame_0_loss_bbox']).abs()).item() < 1e-3


def test_denoising_losses_are_those_of_the_known_boxes():
    model = toy.build()
    head, outputs = model.pts_bbox_head, {}
    head.register_forward_hook(lambda _module, _inputs, result: outputs.update(result))
    losses = model(return_loss=True, **toy.batch(((2,), (4,))))
    known, labels = (outputs['dn_mask_dict'][key] for key in ('known', 'labels'))
    scores, boxes = (
        rows[0][known.batch, known.slot] for rows in outputs['dn_mask_dict']['output_known_lbs_bboxes']
    )
    count = 2 * (2 + 4)
    assert len(labels) == count
    p, is_label = scores.sigmoid(), torch.nn.functional.one_hot(labels, 11)[:, :10].bool()
    focal = torch.where(is_label, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()).sum()
    factor = max(count * 3.14159 / 6 * 0.75**3, 1)
    assert losses['frame_0_d0.dn_loss_cls'].item() == pytest.approx(2 * focal.item() / factor, rel=1e-4)
    truth = known.bboxes
    rows = torch.cat(
        [truth[:, :3], truth[:, 3:6].log(), truth[:, 6:7].sin(), truth[:, 6:7].cos(), truth[:, 7:]], 1
    )
    distance = ((boxes - rows).abs() * head.code_weights).sum()
    assert losses['frame_0_d0.dn_loss_bbox'].item() == pytest.approx(0.25 * distance.item() / count, rel=1e-4)


def test_frames_without_gradients_feed_the_memory_and_leave_the_mode():
    model = toy.build(frames=1)
    modes = []
    model.pts_bbox_head.register_forward_pre_hook(
        lambda module, _: modes.append((module.training, torch.is_grad_enabled()))
    )
    losses = model(return_loss=True, **toy.batch(((1, 1, 1),)))
    assert modes == [(False, False), (False, False), (True, True)]
    assert model.training and model.pts_bbox_head.training
    assert {name.split('_')[1] for name in losses} == {'2'}
    assert not model.pts_bbox_head.memory.embedding.requires_grad


def test_the_previous_frame_changes_the_loss():
    data = toy.batch(((1, 1),))
    values = []
    for changed in (False, True):
        model = toy.build(head=dict(with_dn=False))
        batch = {
            key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in data.items()
        }
        if changed:
            batch['prev_exists'][:] = 0
        values.append(model(return_loss=True, **batch)['frame_1_loss_cls'].item())
    assert values[0] != values[1]


def test_training_after_a_test_does_not_read_the_memory_of_the_test(monkeypatch: pytest.MonkeyPatch):
    model = toy.build(img_roi_head=None)
    head, memories = model.pts_bbox_head, []
    model.eval()(return_loss=False, **toy.test_inputs())
    monkeypatch.setattr(model, 'obtain_history_memory', lambda *_: memories.append(head.memory) or {})
    for _ in range(2):
        model.train()(return_loss=True, **toy.batch(((1,),), first_frame=1))
        head.memory = 'of training'
    assert memories == [None, 'of training']
    model.eval()(return_loss=False, **toy.test_inputs())  # of the scene that the last test ended with


def test_evaluation_mode_is_put_back_after_an_error():
    model = toy.build()
    with pytest.raises(RuntimeError), without_gradients(model):
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()


def test_a_detector_without_2d_head_trains():
    losses = toy.build(img_roi_head=None)(return_loss=True, **toy.batch(((1,), (1,))))
    assert set(losses) == {f'frame_0_{name}' for name in LOSS_3D}


def test_losses_on_frames_without_gradients_are_refused():
    with pytest.raises(ConfigError, match='num_frame_losses'):
        toy.build(num_frame_losses=2, num_frame_head_grads=1)


def slow_grid(
    height: int, width: int, period: int, thickness: int, start_y: int, start_x: int
) -> torch.Tensor:
    """Stripes drawn one by one into a field 1.5 times as large, and its centre; 1 in the stripes."""
    big_h, big_w = int(1.5 * height), int(1.5 * width)
    field = torch.zeros(big_h, big_w)
    for i in range(big_h // period):
        field[i * period + start_y : i * period + start_y + thickness] = 1
    for i in range(big_w // period):
        field[:, i * period + start_x : i * period + start_x + thickness] = 1
    top, left = (big_h - height) // 2, (big_w - width) // 2
    return field[top : top + height, left : left + width]


@pytest.mark.parametrize('seed', range(5))
def test_grid_equals_stripes_drawn_one_by_one(seed: int):
    torch.manual_seed(seed)
    mask = GridMask().draw(32, 48)
    torch.manual_seed(seed)
    period = int(torch.randint(2, 32, ()))
    thickness = min(max(int(period * 0.5 + 0.5), 1), period - 1)
    start_y, start_x = int(torch.randint(0, period, ())), int(torch.randint(0, period, ()))
    assert torch.equal(mask, slow_grid(32, 48, period, thickness, start_y, start_x))


def test_the_grids_of_a_seed_stay_what_they_were():
    torch.manual_seed(0)
    grid = GridMask()
    assert [int(grid.draw(64, 96).sum()) for _ in range(4)] == [4527, 4665, 4274, 4576]


def test_grid_mask_works_in_training_alone_and_sometimes():
    images, mask = torch.ones(2, 3, 32, 96), GridMask()
    torch.manual_seed(0)
    hidden = sum(bool((mask(images) == 0).any()) for _ in range(100))
    assert 45 < hidden < 85
    assert mask.eval()(images) is images


def test_training_with_grid_mask_runs():
    model = toy.build(use_grid_mask=True)
    assert all(torch.isfinite(v) for v in model(return_loss=True, **toy.batch()).values())
