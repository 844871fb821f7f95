"""mmcv's operators without a compiler, against the compiled ones, or loops where only a GPU has them."""

import math
import sys

import numpy as np
import pytest
import torch

from mmdeploy_ext.upstream import compat

compat.apply()

import mmcv.ops  # noqa: E402

from mmdeploy_ext.runtime.bird_eye import intersection_area  # noqa: E402
from mmdeploy_ext.runtime.geometry import bev_corners  # noqa: E402
from mmdeploy_ext.upstream.compat import mmcv_operators  # noqa: E402

EXTENSION = sys.modules['mmcv._ext']
IS_COMPILED = not isinstance(EXTENSION, mmcv_operators.PlainExtension)
PLAIN = mmcv_operators.PlainExtension('mmcv._ext')
needs_compiled = pytest.mark.skipif(not IS_COMPILED, reason='mmcv has no compiled operators')


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxes(count, seed=0, extent=40.0):
    low, size = random(count, 2, seed=seed) * extent, random(count, 2, seed=seed + 1) * 20 + 0.5
    return torch.cat([low, low + size], 1)


def crowd(count, digits=1):
    """Return boxes of equal places, and scores of which many are equal."""
    places = boxes(count)
    places = places[torch.arange(count) % (count // 2 + 1)]
    return places.round(), (random(count, seed=5) * 10**digits).round() / 10**digits


def rotated(count, seed=0):
    places = boxes(count, seed)
    centre, size = (places[:, :2] + places[:, 2:]) / 2, places[:, 2:] - places[:, :2]
    angles = (random(count, 1, seed=seed + 2) - 0.5) * math.pi
    found = torch.cat([centre, size, angles], 1)
    found[: count // 4] = found[count // 4 : 2 * (count // 4)]  # equal ones
    found[count // 2 : count // 2 + 1, 2] = 0  # without an area
    return found


def regions(count, rotates=False):
    images = torch.arange(count)[:, None] % 2
    return torch.cat([images.float(), rotated(count) if rotates else boxes(count)], 1)


def convolution(kind, groups=1, offset_groups=1, stride=1, padding=1, dilation=1, batch=2, size=(9, 7)):
    torch.manual_seed(0)
    maps = random(batch, 4, *size)
    side = [(length + 2 * padding - 2 * dilation - 1) // stride + 1 for length in size]
    moves = random(batch, offset_groups * 18, *side, seed=1) * 6 - 3
    moves[:, ::5] = moves[:, ::5].round()  # at the cells, and at the border
    weight, bias = random(6, 4 // groups, 3, 3, seed=2) - 0.5, random(6, seed=3)
    settings = stride, padding, dilation, groups, offset_groups
    if kind == 'deform':
        return mmcv.ops.deform_conv2d(maps, moves, weight, *settings)
    mask = random(batch, offset_groups * 9, *side, seed=4)
    return mmcv.ops.modulated_deform_conv2d(maps, moves, mask, weight, bias, *settings)


def larger_offsets():
    maps, weight = random(1, 4, 5, 6), random(2, 4, 3, 3, seed=2)
    moves, mask = random(1, 18, 8, 9, seed=1), random(1, 9, 8, 9, seed=3)
    return mmcv.ops.modulated_deform_conv2d(maps, moves, mask, weight, random(2), 1, 1, 1, 1, 1)


def points(count=200):
    found = random(count, 4) * torch.tensor([12.0, 12, 4, 1]) - torch.tensor([2.0, 2, 1, 0])
    found[::7, :2] = found[::7, :2].round()  # on the border of cells
    found[::11] = found[:1]
    return found


def boxes_of_points(count):
    found = random(count, 7) * torch.tensor([8.0, 8, 1, 5, 5, 3, 6])
    found[::3, 6] = 0
    return found


def voxels(most_points, most_voxels, count=200):
    size, limits = [1.0, 2.0, 4.0], [0.0, 0.0, -1.0, 8.5, 8.0, 3.0]
    return mmcv.ops.voxelization(points(count), size, limits, most_points, most_voxels, True)


def turned_kernels():
    weight, indices = random(3, 2, 4, 3, 3), torch.zeros(4, 3, 3, 8, dtype=torch.int32)
    for turn in range(8):
        indices[..., turn] = torch.from_numpy(np.random.default_rng(turn).permutation(36) + 1).view(4, 3, 3)
    return mmcv.ops.active_rotated_filter(weight, indices)


def soft(method, count=60, offset=0):
    places, scores = crowd(count)
    return mmcv.ops.soft_nms(places, scores, 0.3, 0.5, 0.05, method, offset)


def aligned_features(count, in_a_list=False):
    best = torch.cat([random(2, 5 * 6, 2, seed=1) * 60, random(2, 5 * 6, 3, seed=2) * 20], 2).view(2, 5, 6, 5)
    best = best.view(-1, 5) if in_a_list else best
    return mmcv.ops.rotated_feature_align(random(2, 3, 5, 6), best, 0.125, count)


MAPS = random(2, 3, 12, 10) - 0.5
IMAGES = torch.tensor([0, 1])
POOL = mmcv.ops.roi_align
CASES = {
    'bbox_overlaps': [
        lambda mode=mode, aligned=aligned, offset=offset: mmcv.ops.bbox_overlaps(
            boxes(5), boxes(5, 3), mode, aligned, offset
        )
        for mode in ('iou', 'iof')
        for aligned in (False, True)
        for offset in (0, 1)
    ]
    + [lambda: mmcv.ops.bbox_overlaps(boxes(5), boxes(0))],
    'box_iou_rotated': [
        lambda mode=mode, aligned=aligned: mmcv.ops.box_iou_rotated(
            rotated(40), rotated(40, 7), mode, aligned
        )
        for mode in ('iou', 'iof')
        for aligned in (False, True)
    ]
    + [
        lambda: mmcv.ops.box_iou_rotated(rotated(9), rotated(9)),
        lambda: mmcv.ops.box_iou_rotated(rotated(0), rotated(4)),
    ],
    'nms': [
        lambda count=count, offset=offset, threshold=threshold: mmcv.ops.nms(*crowd(count), threshold, offset)
        for count in (0, 1, 16, 300)
        for offset in (0, 1)
        for threshold in (0.5, 1 / 3, 0.0)
    ]
    + [lambda: mmcv.ops.batched_nms(*crowd(90), torch.arange(90) % 3, dict(type='nms', iou_threshold=0.5))],
    'nms_match': [
        lambda count=count: mmcv.ops.nms_match(
            torch.cat([crowd(count)[0], crowd(count)[1][:, None]], 1), 1 / 3
        )
        for count in (0, 1, 120)
    ],
    'nms_rotated': [
        lambda count=count: mmcv.ops.nms_rotated(rotated(count), crowd(count)[1], 0.1)
        for count in (1, 17, 120)
    ]
    + [lambda: mmcv.ops.nms_rotated(rotated(60), crowd(60)[1], 0.3, torch.arange(60) % 4)],
    'softnms': [lambda method=method: soft(method) for method in ('naive', 'linear', 'gaussian')]
    + [lambda: soft('linear', 30, 1), lambda: soft('linear', 1), lambda: soft('gaussian', 0)],
    'roi_align_forward': [
        lambda ratio=ratio, mode=mode, aligned=aligned: POOL(
            MAPS, regions(9), (3, 2), 0.25, ratio, mode, aligned
        )
        for ratio in (0, 2)
        for mode in ('avg', 'max')
        for aligned in (False, True)
    ]
    + [
        lambda: POOL(MAPS, regions(0), (3, 2), 0.25),
        lambda: POOL(MAPS, regions(4) * torch.tensor([1.0, 9, 9, 9, 9]), 2, 1.0, 0, 'max'),
        lambda: POOL(MAPS, torch.tensor([[0.0, 3, 3, 3, 3]]), 2, 1.0),
    ],
    'roi_align_rotated_forward': [
        lambda ratio=ratio, aligned=aligned, clockwise=clockwise: mmcv.ops.roi_align_rotated(
            MAPS, regions(9, True), (3, 2), 0.25, ratio, aligned, clockwise
        )
        for ratio in (0, 2)
        for aligned in (False, True)
        for clockwise in (False, True)
    ]
    + [lambda: mmcv.ops.roi_align_rotated(MAPS, regions(0, True), 3, 0.25)],
    'deform_conv_forward': [
        lambda settings=settings: convolution('deform', **settings)
        for settings in ({}, dict(groups=2, offset_groups=2, stride=2), dict(dilation=2, padding=2, batch=1))
    ],
    'modulated_deform_conv_forward': [
        lambda settings=settings: convolution('modulated', **settings)
        for settings in ({}, dict(groups=2, offset_groups=4, stride=2), dict(dilation=2, padding=0, batch=1))
    ]
    + [larger_offsets],
    'active_rotated_filter_forward': [turned_kernels],
    'rotated_feature_align_forward': [
        lambda: aligned_features(1),
        lambda: aligned_features(5),
        lambda: aligned_features(5, True),
    ],
    'psamask_forward': [
        lambda kind=kind: mmcv.ops.PSAMask(kind, (3, 5))(random(2, 15, 4, 6))
        for kind in ('collect', 'distribute')
    ],
    'dynamic_voxelize_forward': [lambda: voxels(-1, -1), lambda: voxels(-1, -1, 0)],
    'hard_voxelize_forward': [lambda: voxels(3, 100), lambda: voxels(5, 7), lambda: voxels(3, 9, 0)],
    'points_in_boxes_cpu_forward': [
        lambda count=count: mmcv.ops.points_in_boxes_cpu(points()[None, :, :3], boxes_of_points(count)[None])
        for count in (0, 1, 9)
    ],
}


def tensors_of(value):
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for entry in value for tensor in tensors_of(entry)]


def test_every_form_has_a_case():
    assert {form.__name__ for form in mmcv_operators.FORMS} == set(CASES)


@needs_compiled
@pytest.mark.parametrize(
    ('operator', 'number'), [(name, number) for name, calls in CASES.items() for number in range(len(calls))]
)
def test_a_form_computes_what_the_compiled_operator_computes(monkeypatch, operator, number):
    run = CASES[operator][number]
    expected = tensors_of(run())
    mmcv_operators.executed.clear()
    for form in mmcv_operators.FORMS:
        monkeypatch.setattr(EXTENSION, form.__name__, getattr(PLAIN, form.__name__))
    found = tensors_of(run())
    assert len(found) == len(expected)
    for tensor, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_pooling_of_whole_cells_takes_the_largest_of_each_cell():
    maps, scale = random(2, 3, 6, 7), 0.5
    rois = torch.tensor(
        [[0.0, 0, 0, 13, 11], [1, 3, 1, 8, 9], [1, -9, -9, 2, 40], [0, 5, 5, 3, 9], [0, 40, 40, 50, 50]]
    )
    expected = torch.zeros(len(rois), 3, 2, 3)
    for number, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale for value in (box[0], box[1], box[2] + 1, box[3] + 1))
        for row, column, channel in np.ndindex(2, 3, 3) if x1 < x2 and y1 < y2 else ():
            rows = range(math.floor(y1 + row * (y2 - y1) / 2), math.ceil(y1 + (row + 1) * (y2 - y1) / 2))
            columns = range(
                math.floor(x1 + column * (x2 - x1) / 3), math.ceil(x1 + (column + 1) * (x2 - x1) / 3)
            )
            cells = [
                maps[int(image), channel, y, x] for y in rows for x in columns if 0 <= y < 6 and 0 <= x < 7
            ]
            expected[number, channel, row, column] = max(cells, default=0)
    torch.testing.assert_close(mmcv.ops.roi_pool(maps, rois, (2, 3), scale), expected)


def test_three_neighbours_are_summed_by_their_weights():
    features, index, weight = random(2, 4, 6), (random(2, 5, 3) * 6).int(), random(2, 5, 3, seed=1)
    expected = [
        [
            [sum(features[b, c, index[b, p, k]] * weight[b, p, k] for k in range(3)) for p in range(5)]
            for c in range(4)
        ]
        for b in range(2)
    ]
    torch.testing.assert_close(mmcv.ops.three_interpolate(features, index, weight), torch.tensor(expected))


def boxes3d(count, seed=0):
    flat = rotated(count, seed)
    return torch.stack(
        [flat[:, 0], flat[:, 1], flat[:, 0] * 0, flat[:, 2], flat[:, 3], flat[:, 2] * 0 + 2, flat[:, 4]], 1
    )


def areas_from_above(first, second):
    """Return the common areas (N, M) by clipping polygons in float64."""
    corners = [bev_corners(side[:, mmcv_operators.BEV].double().numpy()) for side in (first, second)]
    return np.array([[intersection_area(one, other) for other in corners[1]] for one in corners[0]]).reshape(
        len(first), len(second)
    )


@pytest.mark.parametrize('count', [0, 1, 12])
def test_boxes_in_3d_overlap_by_their_polygons_from_above(count):
    first, second = boxes3d(9), boxes3d(count, 4)
    expected = areas_from_above(first, second)
    np.testing.assert_allclose(
        mmcv.ops.boxes_overlap_bev(first, second).numpy(), expected, rtol=1e-4, atol=1e-4
    )
    assert mmcv.ops.boxes_iou3d(first, second).shape == (9, count)


@pytest.mark.parametrize('turns', [True, False])
@pytest.mark.parametrize('count', [0, 1, 40])
def test_suppression_in_3d_keeps_boxes_that_no_better_one_overlaps_by_more(count, turns):
    found, scores = boxes3d(count), random(count, seed=9)
    upright = found if turns else found * torch.tensor([1.0, 1, 1, 1, 1, 1, 0])
    area = (found[:, 3] * found[:, 4]).numpy()
    shared = areas_from_above(upright, upright)
    iou = shared / np.maximum(area[:, None] + area - shared, 1e-8)
    kept = []
    for box in scores.argsort(descending=True).tolist():
        if all(iou[better, box] <= 0.2 for better in kept):
            kept.append(box)
    suppress = mmcv.ops.nms3d if turns else mmcv.ops.nms3d_normal
    assert suppress(found, scores, 0.2).tolist() == kept


@pytest.mark.parametrize('count', [0, 1, 9])
def test_points_are_in_the_boxes_that_the_operator_of_the_cpu_finds(count):
    places, found = points()[None, :, :3], boxes_of_points(count)[None]
    inside = mmcv.ops.points_in_boxes_cpu(places, found)
    everywhere, first = torch.zeros_like(inside), torch.full(places.shape[:2], -1, dtype=torch.int32)
    EXTENSION.points_in_boxes_all_forward(found, places, everywhere)
    EXTENSION.points_in_boxes_part_forward(found, places, first)
    torch.testing.assert_close(everywhere, inside)
    assert first[0].tolist() == [next(iter(row.nonzero()[:, 0].tolist()), -1) for row in inside[0]]


def test_an_operator_without_a_form_is_refused_by_its_name_when_it_is_called():
    assert 'knn_forward' not in dir(PLAIN)
    with pytest.raises(NotImplementedError, match='knn_forward'):
        PLAIN.knn_forward(1)


def test_operators_that_ran_are_named():
    mmcv_operators.executed.clear()
    PLAIN.nms(boxes(3), random(3), 0.5, 0)
    assert list(mmcv_operators.executed) == ['nms']
