"""LidarBackbone: voxels and their means on the CPU, hard and dynamic, and points that are refused."""

import numpy as np
import pytest
import torch

pytest.importorskip('spconv')

from mmdet3d.models.builder import build_detector

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_seeded as seeded
from mmdeploy_ext.base.errors import DataError, ShapeError

RANGE, SIZE = [-6.0, -5.0, -2.0, 6.0, 5.0, 2.0], [0.5, 0.5, 0.25]


def model(order='xyz', limit=10, voxels=4000, in_channels=5):
    grid = [24, 20, 17]
    encoder = dict(
        type='BEVFusionSparseEncoder' if order == 'xyz' else 'SparseEncoder',
        in_channels=in_channels,
        sparse_shape=grid if order == 'xyz' else grid[::-1],
        output_channels=8,
        base_channels=4,
        encoder_channels=((4, 4, 8), (8, 8)),
        encoder_paddings=((0, 0, 1), (0, 0)),
        block_type='basicblock',
    )
    layer = dict(max_num_points=limit, voxel_size=SIZE, point_cloud_range=RANGE, max_voxels=(voxels, voxels))
    built = build_detector(dict(type='LidarBackbone', voxel_layer=layer, encoder=encoder)).eval()
    seeded.fill_sparse_module(built.encoder)
    return built


def cloud(count=600, seed=0, width=5):
    rng = np.random.default_rng(seed)
    low, high = np.array(RANGE[:3]) - 1, np.array(RANGE[3:]) + 1
    points = np.concatenate([rng.uniform(low, high, (count, 3)), rng.random((count, width - 3))], 1)
    return torch.from_numpy(points.astype(np.float32))


def slow_means(points, limit, order):
    """Coordinate -> mean of the first `limit` points of the voxel, one point after the other."""
    cells = {}
    for point in points.numpy():
        index = np.floor((point[:3] - np.float32(RANGE[:3])) / np.float32(SIZE)).astype(int)
        if (index >= 0).all() and (index < [24, 20, 16]).all():
            cells.setdefault(tuple(index if order == 'xyz' else index[::-1]), []).append(point)
    return {key: np.mean(group if limit < 0 else group[:limit], axis=0) for key, group in cells.items()}


@pytest.mark.parametrize(('order', 'limit'), [('xyz', 2), ('zyx', 10), ('xyz', -1)])
def test_voxels_and_means_equal_the_slow_reference(order, limit):
    points = torch.cat([cloud(), cloud() + 0.01])
    features, coordinates = model(order, limit, -1 if limit < 0 else 4000).voxelize([points])
    expected = slow_means(points, limit, order)
    got = dict(zip(map(tuple, coordinates[:, 1:].tolist()), features.numpy(), strict=True))
    assert got.keys() == expected.keys() and len(got) == len(coordinates)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-5)
    assert coordinates.dtype == torch.int32 and not coordinates[:, 0].any()


@pytest.mark.parametrize('limit', [10, -1])
def test_a_batch_gives_what_its_samples_give_alone(limit):
    net = model(limit=limit)
    clouds = [cloud(300, 1), cloud(0, 2), cloud(400, 3)]
    with torch.no_grad():
        together = net(clouds)
        alone = torch.cat([net([points]) for points in clouds])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert together.shape == (3, 32, 12, 10)


@pytest.mark.parametrize('limit', [10, -1])
def test_no_point_and_no_point_in_range_give_zeros(limit):
    net = model(limit=limit)
    with torch.no_grad():
        for points in (torch.zeros(0, 5), torch.full((7, 5), 100.0)):
            out = net([points])
            assert out.shape == (1, 32, 12, 10) and not out.any()


def test_points_of_another_width_or_with_nan_are_refused():
    net = model()
    with pytest.raises(ShapeError, match=r'1.*\(600.*4\).*\(P.*5\).*in_channels=5'):
        net([cloud(), cloud(width=4)])
    wide, _ = net.voxelize([cloud(width=7)])
    assert wide.shape[1] == 5  # what stands behind the fifth value is not used, as in mmdet3d
    broken = cloud()
    broken[3, 1] = float('nan')
    with pytest.raises(DataError, match=r'1.*600.*NaN'):
        net([broken])
