"""Voxelisation against mmcv's own operators on CPU."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from mmcv.ops import Voxelization
from mmdet3d.models.voxel_encoders import HardSimpleVFE

from mmdeploy_ext.runtime.preprocess.points import pillars, voxelise
from mmdeploy_ext.spec.preparation import VoxelRule

RULE = VoxelRule((-5.4, -3.6, -5.0, 5.4, 4.26, 3.0), (0.075, 0.1, 0.2), 10, 160000, 'zyx', 5)


def sweep(points=6000, seed=0):
    """Points in clumps, some outside, some on cell borders and on the ends of the range."""
    rng = np.random.default_rng(seed)
    low, high = np.array(RULE.point_cloud_range).reshape(2, 3)
    place = rng.uniform(low - 0.5, high + 0.5, (points, 3))
    place[: points // 2] = place[rng.integers(0, points // 40, points // 2)] + rng.normal(
        0, 0.05, (points // 2, 3)
    )
    cells = rng.integers(0, 40, (500, 3))
    place[-500:] = low + cells * np.array(RULE.voxel_size)
    place[:8] = list(itertools.product(*zip(low, high, strict=True)))
    rest = rng.standard_normal((points, 2))
    return rng.permutation(np.concatenate([place, rest], 1)).astype(np.float32)


def mmcv_hard(points, rule):
    layer = Voxelization(
        list(rule.voxel_size), list(rule.point_cloud_range), rule.max_points, rule.max_voxels
    )
    voxels, coordinates, counts = layer(torch.from_numpy(points))
    means = HardSimpleVFE(rule.in_channels)(voxels, counts, coordinates)
    return means.numpy(), coordinates.numpy()


@pytest.mark.parametrize(('max_points', 'max_voxels'), [(10, 160000), (1, 160000), (3, 700), (10, 1)])
def test_hard_voxels_equal_mmcvs(max_points, max_voxels):
    rule = dataclasses.replace(RULE, max_points=max_points, max_voxels=max_voxels)
    points = sweep()
    features, coordinates = voxelise(points, rule)
    means, expected = mmcv_hard(points, rule)
    assert coordinates.dtype == np.int32 and features.dtype == np.float32
    assert np.array_equal(coordinates[:, 1:], expected)
    assert not coordinates[:, 0].any()
    assert np.allclose(features, means, rtol=1e-5, atol=1e-5)


def test_half_a_cell_at_the_end_of_the_range_is_a_cell_as_in_mmcv():
    rule = VoxelRule((0.0, 0.0, 0.0, 8.5, 4.0, 2.0), (1.0, 1.0, 2.0), 10, 100, 'zyx', 5)
    points = np.float32([[8.2, 1, 1, 0, 0], [8.9, 2, 1, 0, 0], [9.1, 3, 1, 0, 0]])
    _, coordinates = voxelise(points, rule)
    assert np.array_equal(coordinates[:, 1:], mmcv_hard(points, rule)[1])
    assert len(coordinates) == 2


@pytest.mark.parametrize(('max_points', 'max_voxels'), [(10, 160000), (3, 700)])
def test_pillars_keep_the_points_that_mmcv_keeps(max_points, max_voxels):
    rule, points = dataclasses.replace(RULE, max_points=max_points, max_voxels=max_voxels), sweep()
    layer = Voxelization(list(rule.voxel_size), list(rule.point_cloud_range), max_points, max_voxels)
    voxels, coordinates, counts = layer(torch.from_numpy(points))
    kept, found, places = pillars(points, rule)
    np.testing.assert_array_equal(kept, voxels.numpy())
    np.testing.assert_array_equal(found, counts.numpy())
    np.testing.assert_array_equal(places[:, 1:], coordinates.numpy())


def test_dynamic_voxels_equal_the_mean_of_mmcvs_cells():
    rule, points = dataclasses.replace(RULE, mode='dynamic', max_points=-1, max_voxels=-1), sweep()
    cells = Voxelization(list(rule.voxel_size), list(rule.point_cloud_range), -1)(
        torch.from_numpy(points)
    ).numpy()
    inside = (cells >= 0).all(1)
    expected, owners = np.unique(cells[inside], axis=0, return_inverse=True)
    sums = np.zeros((len(expected), 5))
    np.add.at(sums, owners.reshape(-1), points[inside].astype(np.float64))
    features, coordinates = voxelise(points, rule)
    assert np.array_equal(coordinates[:, 1:], expected)
    assert np.allclose(features, sums / np.bincount(owners.reshape(-1))[:, None], rtol=1e-5, atol=1e-5)


def test_the_order_turns_the_axes_and_nothing_else():
    zyx = voxelise(sweep(), RULE)
    xyz = voxelise(sweep(), dataclasses.replace(RULE, order='xyz'))
    assert np.array_equal(zyx[0], xyz[0])
    assert np.array_equal(zyx[1][:, [0, 3, 2, 1]], xyz[1])


def test_nothing_in_range_gives_no_voxel():
    far = np.full((7, 5), 1e6, np.float32)
    for points in (far, far[:0]):
        features, coordinates = voxelise(points, RULE)
        assert features.shape == (0, 5) and coordinates.shape == (0, 4)
