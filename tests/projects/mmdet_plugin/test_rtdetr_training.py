"""RT-DETR trains: matching, varifocal loss, denoising queries, and a small model that learns two images."""

import itertools

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_rtdetr
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy, paired_iou, xyxy_to_cxcywh
from mmdeploy_ext.models.rtdetr.training import (
    Objects,
    SetLoss,
    attention_mask,
    denoising_queries,
    varifocal,
)


def build(**overrides):
    from mmdet.models import build_detector

    torch.manual_seed(0)
    cfg = load_config(
        toy_rtdetr.CONFIG,
        {
            'model.decoder.num_queries': 30,
            'model.test_cfg.max_per_img': 30,
            'model.decoder.num_layers': 2,
            **overrides,
        },
    )
    return build_detector(cfg.model)


def random_boxes(count, seed=0):
    numbers = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return numbers * torch.tensor([0.4, 0.4, 0.3, 0.3]) + torch.tensor([0.3, 0.3, 0.1, 0.1])


def test_box_formats_and_overlaps():
    boxes = random_boxes(5)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    one, two = torch.tensor([0.0, 0, 2, 2]), torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 0, 6, 2]])
    iou, giou = paired_iou(one[None], two)
    torch.testing.assert_close(iou, torch.tensor([1, 1 / 7, 0]))
    torch.testing.assert_close(giou, torch.tensor([1, 1 / 7 - 2 / 9, -4 / 12]))


def test_the_matching_is_the_cheapest_of_all():
    loss = SetLoss({})
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    boxes, objects = random_boxes(5)[None], Objects([random_boxes(3, 2)], [torch.tensor([0, 2, 2])])
    costs = loss._costs(logits[0].sigmoid(), boxes[0], objects.boxes[0], objects.labels[0])
    wanted = min(
        itertools.permutations(range(5), 3),
        key=lambda rows: sum(float(costs[row, column]) for column, row in enumerate(rows)),
    )
    queries, found = loss.match(logits, boxes, objects)[0]
    pairs = zip(found.tolist(), queries.tolist(), strict=True)
    assert dict(pairs) == dict(enumerate(wanted))
    p = logits[0].sigmoid()[1, 2]
    focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    _, giou = paired_iou(cxcywh_to_xyxy(boxes[0, 1]), cxcywh_to_xyxy(objects.boxes[0][1]))
    distance = (boxes[0, 1] - objects.boxes[0][1]).abs().sum()
    torch.testing.assert_close(costs[1, 1], 2 * focal + 5 * distance - 2 * giou)


def test_varifocal_loss_is_its_formula():
    logits, quality = torch.tensor([[[0.3, -1.0]]]), torch.tensor([[[0.7, 0.0]]])
    p, q = logits.sigmoid(), 0.7
    positive = q * -(q * p[0, 0, 0].log() + (1 - q) * (1 - p[0, 0, 0]).log())
    negative = 0.75 * p[0, 0, 1] ** 2 * -(1 - p[0, 0, 1]).log()
    torch.testing.assert_close(varifocal(logits, quality, quality > 0), positive + negative)


def test_perfect_boxes_cost_nothing_and_worse_ones_more():
    loss, boxes = SetLoss({}), random_boxes(4)[None]
    objects, pairs = Objects([boxes[0, :2]], [torch.tensor([0, 1])]), [(torch.arange(2), torch.arange(2))]
    logits = torch.zeros(1, 4, 3)
    perfect = loss.losses(logits, boxes, objects, pairs, 2)
    worse = loss.losses(logits, boxes + 0.02, objects, pairs, 2)
    assert abs(float(perfect['loss_bbox'])) < 1e-6 and abs(float(perfect['loss_giou'])) < 1e-5
    torch.testing.assert_close(worse['loss_bbox'], torch.tensor(5 * 0.02 * 4))
    assert worse['loss_giou'] > 0.01


def test_denoising_queries_undo_their_objects_and_see_nothing_else():
    decoder = build(**{'model.decoder.num_denoising': 12}).decoder
    boxes = [random_boxes(3), random_boxes(1, 1)]
    labels = [torch.tensor([0, 1, 2]), torch.tensor([5])]
    queries = denoising_queries(decoder, boxes, labels)
    assert queries.repetitions == 4 and len(queries) == 24 == queries.target.shape[1]
    rows, objects = queries.pairs[0]
    assert rows.tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20] and objects.tolist() == [0, 1, 2] * 4
    assert queries.pairs[1][0].tolist() == [0, 6, 12, 18]
    noisy = cxcywh_to_xyxy(queries.boxes_logit.sigmoid()[0])
    reach = boxes[0][:, 2:].repeat(1, 2) * 0.5
    gaps = (noisy.reshape(4, 2, 3, 4) - cxcywh_to_xyxy(boxes[0])).abs() / reach
    assert gaps[:, 0].max() <= 1.001 and gaps[:, 1].max() > 1.0
    mask = attention_mask(6, 4, 5)
    assert mask.shape == (29, 29)
    assert mask[24:, :24].all() and not mask[24:, 24:].any() and not mask[:24, 24:].any()
    assert not mask[:6, :6].any() and mask[:6, 6:24].all()
    assert denoising_queries(decoder, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]) is None


def test_unknown_weights_are_refused():
    with pytest.raises(ConfigError, match=r"train_cfg has \['loss_cls'\]"):
        SetLoss({'loss_cls': 1})
    with pytest.raises(ConfigError, match=r"\['dice'\]"):
        SetLoss({'loss': {'dice': 1.0}})


def drawn_images():
    images = torch.full((2, 3, 128, 128), 0.4)
    boxes = [torch.tensor([[8.0, 8, 56, 56], [70, 60, 120, 110]]), torch.tensor([[30.0, 40, 90, 100]])]
    labels = [torch.tensor([0, 1]), torch.tensor([2])]
    for image, places, kinds in zip(images, boxes, labels, strict=True):
        for (x1, y1, x2, y2), kind in zip(places.int().tolist(), kinds.tolist(), strict=True):
            image[kind, y1:y2, x1:x2] = 1.0
    return images, boxes, labels


def test_losses_reach_every_parameter_and_pictures_without_boxes_have_them_too():
    model = build().train()
    images, boxes, labels = drawn_images()
    losses = model.forward_train(images, [{}, {}], boxes, labels)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {key.split('.')[0] for key in losses if '.' in key} == {'d0', 'dn0', 'dn1', 'enc'}
    empty = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    nothing = model.forward_train(images, [{}, {}], *empty)
    assert nothing['loss_bbox'] == 0 and torch.isfinite(sum(nothing.values()))


@pytest.mark.matrix
def test_a_small_model_learns_two_images():
    model = build().train()
    images, boxes, labels = drawn_images()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(50):
        total = sum(model.forward_train(images, [{}, {}], boxes, labels).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0]
    model.eval()
    with torch.no_grad():
        results = model.simple_test(images, [{}, {}])
    for result, places, kinds in zip(results, boxes, labels, strict=True):
        for place, kind in zip(places, kinds.tolist(), strict=True):
            assert len(result[kind])
            best = torch.from_numpy(result[kind])[:3, :4]
            assert paired_iou(best, place[None])[0].max() > 0.5
