"""The geometric start: footprints are projections, the attention learns them, a new run begins with them."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmcv.parallel import DataContainer

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.models.streampetr.warmup import GeometryWarmupHook, draw_points, footprint, warm_up

SIZE = (toy.HEIGHT, toy.WIDTH)


def test_a_footprint_is_around_the_projection_and_sums_to_one():
    rig, head = toy.rig()['lidar2img'], toy.build().pts_bbox_head
    centers = head.token_centers(SIZE, 1)
    points = draw_points(head, 200)
    weights = footprint(points, rig, centers, SIZE, 8.0).view(200, toy.NUM_CAMS, -1)
    seen = 0
    for point, weight in zip(points, weights, strict=True):
        for camera, matrix in enumerate(rig):
            x, y, depth = (matrix @ torch.cat([point, torch.ones(1)]))[:3].tolist()
            inside = depth > 0.5 and 0 < x / depth < toy.WIDTH and 0 < y / depth < toy.HEIGHT
            assert bool(weight[camera].sum() > 0) == inside
            if inside:
                nearest = (centers - torch.tensor([x / depth, y / depth])).norm(dim=1).argmin()
                assert weight[camera].argmax() == nearest
                seen += 1
    sums = weights.sum((1, 2))
    assert seen > 50 and torch.allclose(sums[sums > 0], torch.ones(int((sums > 0).sum())), atol=1e-4)


def test_a_point_that_no_camera_sees_has_no_footprint():
    head = toy.build().pts_bbox_head
    point = torch.tensor([[5.0, 0.0, 40.0]])
    assert not footprint(point, toy.rig()['lidar2img'], head.token_centers(SIZE, 1), SIZE, 8.0).any()


def test_the_attention_learns_where_points_are():
    torch.manual_seed(0)
    head, rig = toy.build().pts_bbox_head, toy.rig()
    before = head.reference_points.weight.clone()
    losses = warm_up(head, rig['lidar2img'][None], rig['intrinsics'][None], SIZE, iters=80, lr=3e-3)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert torch.equal(head.reference_points.weight, before)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize(('iteration', 'iters', 'runs'), [(0, 2, True), (250, 2, False), (0, 0, False)])
def test_a_new_run_begins_with_it_and_a_resumed_one_does_not(iteration, iters, runs):
    model, batch = toy.build(), toy.batch()
    data = {key: DataContainer([batch[key]]) for key in ('lidar2img', 'intrinsics', 'img_metas')}
    runner = SimpleNamespace(iter=iteration, model=model, data_batch=data, logger=logging.getLogger('test'))
    before = model.pts_bbox_head.position_encoder[0].weight.clone()
    GeometryWarmupHook(iters=iters, num_points=16).before_train_iter(runner)
    assert torch.equal(before, model.pts_bbox_head.position_encoder[0].weight) != runs
    assert all(parameter.grad is None for parameter in model.parameters())
