"""The smallest rectangle around points: the graph's, by pairs, against a walk along the convex hull."""

import numpy as np
import pytest
import torch
from mmcv.ops import min_area_polygons
from mmrotate.core import poly2obb

from mm2onnx_mmrotate.angles import VERSIONS
from mm2onnx_mmrotate.dense.smallest_rectangle import smallest_rectangle
from mm2onnx_mmrotate.min_area_kernel import min_area_polygons_on_cpu, smallest_polygon


def test_the_kernel_finds_known_rectangles():
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inside = np.random.default_rng(0).uniform([-3, -1], [3, 1], (20, 2))
    points = np.concatenate([inside, [[-3, -1], [3, -1], [3, 1], [-3, 1]]]) @ turn.T + [5, 7]
    corners = smallest_polygon(points.astype(np.float32))
    sides = np.linalg.norm(np.roll(corners, -1, 0) - corners, axis=1)
    np.testing.assert_allclose(np.sort(sides), [2, 2, 6, 6], atol=1e-5)
    np.testing.assert_allclose(corners.mean(0), [5, 7], atol=1e-5)


def test_without_the_kernel_mmcv_refuses_and_after_it_too():
    points = torch.randn(3, 18)
    with min_area_polygons_on_cpu():
        assert min_area_polygons(points).shape == (3, 8)
    with pytest.raises(RuntimeError, match='device cpu'):
        min_area_polygons(points)


@pytest.mark.parametrize('version', VERSIONS)
def test_rectangles_of_all_pairs_are_those_of_the_hull(version):
    points = torch.randn(600, 9, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([30.0, 9.0])
    points[:300] = points[:300] @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    with min_area_polygons_on_cpu():
        expected = poly2obb(min_area_polygons(points.flatten(1)), version)
    by_torch = smallest_rectangle(torch, points[None, ..., 0], points[None, ..., 1], version)[0]
    by_numpy = smallest_rectangle(np, *points.numpy()[None].transpose(3, 0, 1, 2), version)[0]
    torch.testing.assert_close(by_torch, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(by_numpy, by_torch.numpy(), rtol=1e-4, atol=1e-3)


def test_points_on_a_line_and_equal_points_have_finite_rectangles():
    line = torch.linspace(0, 8, 9)
    for x, y, width in ((line, line, 8 * 2**0.5), (line, line * 0, 8.0), (line * 0, line * 0, 0.0)):
        box = smallest_rectangle(torch, x[None, None], y[None, None], 'le90')[0, 0]
        assert torch.isfinite(box).all() and abs(float(box[2]) - width) < 1e-4 and abs(float(box[3])) < 1e-4
