"""Operators of mmcv without a CPU kernel, against plain loops over their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat import plain_kernels
from mmdeploy_ext.upstream.compat.plain_kernels import aggregation_of_points, dcnv3_forward

compat.apply()


@pytest.mark.parametrize(('groups', 'factor'), [(2, 2), (1, 3)])
def test_carafe_is_a_sum_of_cells_by_a_kernel_of_each_new_cell(groups, factor):
    from mmcv.ops import CARAFE

    draw, kernel, channels, height, width = np.random.default_rng(0), 3, 4, 5, 6
    features = draw.normal(size=(2, channels, height, width)).astype(np.float32)
    masks = draw.normal(size=(2, groups * kernel**2, height * factor, width * factor)).astype(np.float32)
    expected = np.zeros((2, channels, height * factor, width * factor))
    for image, channel, y, x in np.ndindex(expected.shape):
        group = channel // (channels // groups)
        for tap in range(kernel**2):
            row, column = y // factor + tap // kernel - 1, x // factor + tap % kernel - 1
            if 0 <= row < height and 0 <= column < width:
                weight = masks[image, group * kernel**2 + tap, y, x]
                expected[image, channel, y, x] += weight * features[image, channel, row, column]
    found = CARAFE(kernel, groups, factor)(torch.from_numpy(features), torch.from_numpy(masks))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def at(cells, y, x):
    """Return what maps (C, H, W) have at a place: bilinear, the border's values up to a cell outside."""
    height, width = cells.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(cells))
    y, x = max(y, 0), max(x, 0)
    rows, columns = (
        (min(int(one), side - 1), min(int(one) + 1, side - 1)) for one, side in ((y, height), (x, width))
    )
    below, right = (one - int(one) if int(one) < side - 1 else 0 for one, side in ((y, height), (x, width)))
    top, bottom = (
        cells[:, row, columns[0]] * (1 - right) + cells[:, row, columns[1]] * right for row in rows
    )
    return top * (1 - below) + bottom * below


@pytest.mark.parametrize(('ratio', 'moves'), [(0, True), (2, False)])
def test_deformable_pooling_samples_every_cell_of_a_region_where_its_offset_moves_it(ratio, moves):
    from mmcv.ops import DeformRoIPool

    draw, (rows, columns), scale, gamma = np.random.default_rng(1), (2, 3), 0.25, 0.1
    maps = draw.normal(size=(2, 3, 12, 16)).astype(np.float32)
    low = draw.uniform(0, 30, (6, 2))
    boxes = np.concatenate([low, low + draw.uniform(4.5, 33, (6, 2))], 1).astype(np.float32)
    rois = np.concatenate([np.arange(6)[:, None] % 2, boxes], 1).astype(np.float32)
    offset = draw.normal(size=(6, 2, rows, columns)).astype(np.float32)
    expected = np.zeros((6, 3, rows, columns))
    for region, row, column in np.ndindex(6, rows, columns):
        x1, y1, x2, y2 = rois[region, 1:] * scale - 0.5
        size = np.array([(y2 - y1) / rows, (x2 - x1) / columns])
        start = np.array([y1 + row * size[0], x1 + column * size[1]])
        if moves:
            start += gamma * offset[region, ::-1, row, column] * [y2 - y1, x2 - x1]
        counts = [ratio or math.ceil(side) for side in size]
        places = [start + size * (np.array(step) + 0.5) / counts for step in np.ndindex(*counts)]
        sampled = [at(maps[int(rois[region, 0])], *place) for place in places]
        expected[region, :, row, column] = np.mean(sampled, 0)
    layer = DeformRoIPool((rows, columns), scale, ratio, gamma)
    given = torch.from_numpy(offset) if moves else None
    found = layer(torch.from_numpy(maps), torch.from_numpy(rois), given)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def slow_dcnv3(features, offset, mask, kernel, stride, pad, dilation, groups, scale):
    """Return what DCNv3 is defined as, one sample after the other; arguments are pairs of y and x."""
    batch, height, width, channels = features.shape
    rows, columns = offset.shape[1:3]
    result = torch.zeros(batch, rows, columns, channels, dtype=features.dtype)
    size = channels // groups
    for image, row, column, group in itertools.product(*map(range, (batch, rows, columns, groups))):
        for point, (i, j) in enumerate(itertools.product(range(kernel[1]), range(kernel[0]))):
            place = group * kernel[0] * kernel[1] + point
            half = [(dilation[axis] * (kernel[axis] - 1)) // 2 for axis in (0, 1)]
            y = (
                row * stride[0]
                - pad[0]
                + half[0]
                + (j * dilation[0] - half[0] + offset[image, row, column, 2 * place + 1].item()) * scale
            )
            x = (
                column * stride[1]
                - pad[1]
                + half[1]
                + (i * dilation[1] - half[1] + offset[image, row, column, 2 * place].item()) * scale
            )
            for down, across in itertools.product((0, 1), (0, 1)):
                corner = math.floor(y) + down, math.floor(x) + across
                weight = (1 - abs(y - corner[0])) * (1 - abs(x - corner[1]))
                if 0 <= corner[0] < height and 0 <= corner[1] < width:
                    value = features[image, corner[0], corner[1], group * size : (group + 1) * size]
                    result[image, row, column, group * size : (group + 1) * size] += (
                        weight * mask[image, row, column, place] * value
                    )
    return result


@pytest.mark.parametrize(
    ('kernel', 'stride', 'pad', 'dilation', 'scale'),
    [
        ((3, 1), (2, 1), (1, 0), (1, 1), 0.5),
        ((3, 3), (1, 2), (2, 2), (2, 2), 2.0),
    ],
)
def test_dcnv3_is_its_definition(kernel, stride, pad, dilation, scale):
    torch.manual_seed(0)
    height, width, groups, size = 5, 4, 2, 3
    rows, columns = (
        (side + 2 * pad[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis, side in enumerate((height, width))
    )
    points = groups * kernel[0] * kernel[1]
    features = torch.randn(2, height, width, groups * size, dtype=torch.float64)
    offset = torch.randn(2, rows, columns, points * 2, dtype=torch.float64) * 2
    mask = torch.rand(2, rows, columns, points, dtype=torch.float64)
    both = [number for pair in (kernel, stride, pad, dilation) for number in pair]
    found = dcnv3_forward(features, offset, mask, *both, groups, size, scale, 256)
    expected = slow_dcnv3(features, offset, mask, kernel, stride, pad, dilation, groups, scale)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('without_centre', [0, 1])
def test_dcnv4_is_dcnv3_of_one_tensor_perhaps_without_the_middle_of_the_kernel(without_centre):
    torch.manual_seed(0)
    groups, size, kept = 2, 3, [point for point in range(9) if not (without_centre and point == 4)]
    features = torch.randn(2, 4, 5, groups * size, dtype=torch.float64)
    offset = torch.randn(2, 4, 5, groups, 9, 2, dtype=torch.float64) * 2
    mask = torch.zeros(2, 4, 5, groups, 9, dtype=torch.float64)
    mask[..., kept] = torch.randn(2, 4, 5, groups, len(kept), dtype=torch.float64)
    of_groups = torch.cat([offset[..., kept, :].flatten(-2), mask[..., kept]], dim=-1).flatten(-2)
    padded = torch.cat([of_groups, torch.full((2, 4, 5, 3), torch.nan)], dim=-1)
    settings = 3, 3, 1, 1, 1, 1, 1, 1, groups, size, 0.5, 256, without_centre
    found = plain_kernels.dcnv4_forward(features, padded, *settings)
    both = (3, 3), (1, 1), (1, 1), (1, 1), groups, 0.5
    expected = slow_dcnv3(features, offset.flatten(3), mask.flatten(3), *both)
    torch.testing.assert_close(found, expected)


def slow_attention(values, shapes, locations, weights):
    """Sums of bilinear samples, point by point; the centre of the first cell of a map is at half a cell."""
    batch, queries, heads, levels, points, _ = locations.shape
    result = values.new_zeros(batch, queries, heads, values.shape[3])
    for place in itertools.product(*map(range, (batch, queries, heads, levels, points))):
        picture, query, head, level, _ = place
        first = sum(height * width for height, width in shapes[:level])
        height, width = shapes[level]
        x, y = (locations[place] * torch.tensor([width, height]) - 0.5).tolist()
        for row, column in itertools.product(*((math.floor(at), math.floor(at) + 1) for at in (y, x))):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[place]
                result[picture, query, head] += share * values[picture, first + row * width + column, head]
    return result.flatten(2)


def test_attention_at_points_is_its_definition():
    torch.manual_seed(0)
    shapes = [(3, 4), (2, 1)]
    values = torch.randn(2, 14, 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 5, 2, 2, 3, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 5, 2, 2, 3, dtype=torch.float64)
    starts = torch.tensor([0, 12])
    found = plain_kernels.attention_at_points(values, torch.tensor(shapes), starts, locations, weights, 64)
    torch.testing.assert_close(found, slow_attention(values, shapes, locations, weights))
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    by_mmcv = MultiScaleDeformableAttnFunction.apply  # as repositories call it
    torch.testing.assert_close(by_mmcv(values, torch.tensor(shapes), starts, locations, weights, 64), found)


def test_an_aggregation_of_points_sums_cameras_and_levels_where_a_point_is_inside():
    torch.manual_seed(0)
    sizes, starts = [(3, 4), (2, 1)], [0, 12]
    features = torch.randn(2, 3, 14, 6, dtype=torch.float64)
    locations = torch.rand(2, 5, 3, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 5, 3, 2, 2, dtype=torch.float64)
    expected = torch.zeros(2, 5, 6, dtype=torch.float64)
    for sample, point, camera, level in itertools.product(range(2), range(5), range(3), range(2)):
        u, v = locations[sample, point, camera].tolist()
        if not (0 < u < 1 and 0 < v < 1):
            continue
        (height, width), factors = sizes[level], weights[sample, point, camera, level].repeat_interleave(3)
        x, y = u * width - 0.5, v * height - 0.5
        for row, column in itertools.product(*((math.floor(at), math.floor(at) + 1) for at in (y, x))):
            if 0 <= row < height and 0 <= column < width:
                cell = features[sample, camera, starts[level] + row * width + column]
                expected[sample, point] += (1 - abs(x - column)) * (1 - abs(y - row)) * factors * cell
    found = aggregation_of_points(features, torch.tensor(sizes), torch.tensor(starts), locations, weights)
    torch.testing.assert_close(found, expected)
