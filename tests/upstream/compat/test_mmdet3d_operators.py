"""Compiled operators of mmdet3d 0.x in PyTorch, against loops and dense convolutions."""

import itertools

import numpy as np
import pytest
import torch

from mmdeploy_ext.upstream.compat import mmdet3d_operators as operators

SIZE, LIMITS = [0.5, 0.5, 1.0], [-2.0, -2.0, -1.0, 2.0, 2.0, 3.0]


def slow_cells(points):
    low, size = (np.float32(values) for values in (LIMITS[:3], SIZE))
    for point in points.numpy():
        cell = np.floor((point[:3] - low) / size).astype(int)
        yield cell if ((cell >= 0) & (cell < [8, 8, 4])).all() else None


def slow_voxels(points, max_points, max_voxels):
    voxels = {}
    for point, cell in zip(points.tolist(), slow_cells(points), strict=True):
        if cell is None or (tuple(cell) not in voxels and len(voxels) == max_voxels):
            continue
        voxels.setdefault(tuple(cell), []).append(point)
    return {cell: values[:max_points] for cell, values in voxels.items()}


def sweep(count=300):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 5, generator=generator) * 5 - 2.5
    points[:40, :3] = torch.tensor([0.1, 0.1, 0.1])  # more points than a voxel keeps
    points[40:44, 0] = torch.tensor([-2.0, 2.0, 0.5, -2.0001])  # on faces
    return points


@pytest.mark.parametrize(('max_points', 'max_voxels'), [(5, 1000), (3, 20)])
def test_points_are_grouped_as_a_loop_groups_them(max_points, max_voxels):
    points = sweep()
    voxels, cells = torch.zeros(max_voxels, max_points, 5), torch.zeros(max_voxels, 3, dtype=torch.int32)
    counts = torch.zeros(max_voxels, dtype=torch.int32)
    count = operators.hard_voxelize(
        points, voxels, cells, counts, SIZE, LIMITS, max_points, max_voxels, 3, True
    )
    expected = slow_voxels(points, max_points, max_voxels)
    assert [tuple(cell) for cell in cells[:count].tolist()] == list(expected)
    assert counts[:count].tolist() == [len(values) for values in expected.values()]
    for voxel, number, values in zip(voxels, counts, expected.values(), strict=False):
        assert voxel[: int(number)].tolist() == values


def test_dynamic_voxels_are_minus_one_outside():
    points = sweep()
    cells = torch.zeros(len(points), 3, dtype=torch.int32)
    operators.dynamic_voxelize(points, cells, SIZE, LIMITS, 3)
    expected = [[-1] * 3 if cell is None else cell.tolist() for cell in slow_cells(points)]
    assert cells.tolist() == expected


SHAPE = [7, 6, 5]
CASES = {
    'submanifold': dict(kernel=[3, 3, 3], stride=[1, 1, 1], padding=[0, 0, 0], subm=1),
    'stride of 2': dict(kernel=[3, 3, 3], stride=[2, 2, 2], padding=[1, 1, 0], subm=0),
    'along z': dict(kernel=[1, 1, 3], stride=[1, 1, 2], padding=[0, 0, 0], subm=0),
    'dilated': dict(kernel=[3, 1, 3], stride=[1, 1, 1], padding=[2, 0, 1], subm=0, dilation=[2, 1, 1]),
}


@pytest.mark.parametrize('case', CASES)
def test_sparse_convolutions_are_dense_ones_at_their_voxels(case):
    kernel, stride, padding = (CASES[case][name] for name in ('kernel', 'stride', 'padding'))
    subm, dilation = CASES[case]['subm'], CASES[case].get('dilation', [1, 1, 1])
    generator = torch.Generator().manual_seed(1)
    filled = torch.rand(2, *SHAPE, generator=generator) < 0.2
    indices = filled.nonzero().int()[torch.randperm(int(filled.sum()), generator=generator)]
    features = torch.randn(len(indices), 4, generator=generator)
    filters = torch.randn(*kernel, 4, 3, generator=generator)
    dense = (
        torch.zeros(2, *SHAPE, 4).index_put(tuple(indices.long().unbind(1)), features).permute(0, 4, 1, 2, 3)
    )
    pads = [size // 2 for size in kernel] if subm else padding
    weight = filters.permute(4, 3, 0, 1, 2)
    expected = torch.nn.functional.conv3d(dense, weight, None, stride, pads, dilation)
    out_shape = list(expected.shape[2:])
    outputs, pairs, counts = operators.get_indice_pairs(
        indices, 2, out_shape, SHAPE, kernel, stride, padding, dilation, [0] * 3, subm, 0
    )
    found = operators.indice_conv(features, filters, pairs, counts, len(outputs), 0, subm)
    rows = tuple(outputs.long().unbind(1))
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 4, 1)[rows], rtol=1e-5, atol=1e-5)
    if subm:
        assert outputs.equal(indices)
    else:  # every cell that a voxel reaches is there, and once
        reached = torch.nn.functional.conv3d(
            filled[:, None].float(), torch.ones(1, 1, *kernel), None, stride, pads, dilation
        )
        assert {tuple(cell) for cell in outputs.tolist()} == {
            tuple(cell) for cell in (reached[:, 0] > 0).nonzero().tolist()
        }
        assert len(outputs) == int((reached > 0).sum())
    assert (pairs[:, 0] >= 0).sum(1).tolist() == counts.tolist()


def test_pooled_features_are_the_sums_of_their_cells():
    generator = torch.Generator().manual_seed(2)
    cells = torch.tensor(sorted(itertools.product(range(3), range(4), [0], range(2))) * 2, dtype=torch.int32)
    cells = cells[torch.randperm(len(cells), generator=generator)[:30]]
    ranks = cells[:, 0] * 8 + cells[:, 1] * 2 + cells[:, 3]
    order = ranks.argsort(stable=True)
    cells, ranks = cells[order], ranks[order]
    features = torch.randn(len(cells), 5, generator=generator)
    starts = torch.tensor([0, *(1 + (ranks[1:] != ranks[:-1]).nonzero()[:, 0]).tolist()], dtype=torch.int32)
    lengths = torch.diff(starts, append=torch.tensor([len(cells)], dtype=torch.int32))
    expected = torch.zeros(2, 1, 3, 4, 5)
    for (row, column, level, sample), values in zip(cells.tolist(), features, strict=True):
        expected[sample, level, row, column] += values
    found = operators.bev_pool_forward(features, cells, lengths, starts, 2, 1, 3, 4)
    torch.testing.assert_close(found, expected)


def test_pooling_of_depth_and_features_sums_per_cell() -> None:
    depth, features = torch.rand(1, 2, 3, 2, 4), torch.rand(1, 2, 2, 4, 5)
    points = torch.randperm(48)[:30]
    cells = torch.randint(12, (30,)).sort().values
    pixels = points // 24 * 8 + points % 8
    starts = torch.cat([torch.zeros(1, dtype=torch.long), cells.diff().nonzero()[:, 0] + 1])
    lengths = torch.cat([starts, torch.tensor([30])]).diff()
    expected, views = torch.zeros(12, 5), torch.zeros(1, 1, 3, 4, 5)
    for point, pixel, cell in zip(points, pixels, cells, strict=True):
        expected[cell] += depth.flatten()[point] * features.flatten(0, -2)[pixel]
    operators.bev_pool_v2_forward(
        depth, features, views, points.int(), pixels.int(), cells.int(), lengths.int(), starts.int()
    )
    torch.testing.assert_close(views.view(12, 5), expected)
