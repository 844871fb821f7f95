"""Forms of compiled operators are chosen by the source that they replace, and compute what it computes."""

import itertools
import math
import sys

import pytest
import torch

from mmdeploy_ext.base.errors import AbsentPackageError
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat import mmdet3d_operators as forms
from mmdeploy_ext.upstream.compat import operator_forms

KERNEL = """
#include <torch/extension.h>
#define TWICE(x) ((x) * 2)
const float START = 0.5;
struct Step { __device__ float operator()(float x) const { return x + START; } };
inline float part(float x) { return TWICE(x); }
namespace ours {
at::Tensor pool_forward(at::Tensor x, int n) { for (int i = 0; i < n; i++) { Step s; } part(1); return x; }
}
float neighbour() { return 1; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("pool_forward", &ours::pool_forward, "pools"); }
"""


def package(folder, kernel=KERNEL):
    (folder / 'src').mkdir(parents=True)
    (folder / '__init__.py').touch()
    (folder / 'pool.py').write_text('from . import pool_ext\n')
    (folder / 'src/pool.cu').write_text(kernel)
    return operator_forms.sources_near(folder / 'pool.py')


def test_a_form_is_found_by_what_its_operator_computes(tmp_path, monkeypatch):
    digest = operator_forms.source_hash(package(tmp_path / 'a'), 'pool_forward')
    same = KERNEL.replace('x + START', 'x  +\n START /* sums */').replace('return 1;', 'return 2;')
    assert operator_forms.source_hash(package(tmp_path / 'b', same), 'pool_forward') == digest
    monkeypatch.setitem(operator_forms.known_forms(), 'pool_forward', {digest: lambda x, n: x + n})
    assert operator_forms.functions_of(str(tmp_path / 'b/pool.py'))['pool_forward'](1, 2) == 3
    assert f'pool_forward (source {digest})' in operator_forms.executed_operators
    changes = [('(x) * 2', '(x) * 3'), ('0.5;', '0.25;'), ('x + START', 'x - START'), ('TWICE(x);', 'x;')]
    for number, (before, after) in enumerate(changes):
        folder = tmp_path / f'other{number}'
        package(folder, KERNEL.replace(before, after))
        assert operator_forms.functions_of(str(folder / 'pool.py')) == {}


def test_an_operator_that_two_extensions_bind_has_no_form(tmp_path):
    assert package(tmp_path / 'a')
    (tmp_path / 'a/more').mkdir()
    (tmp_path / 'a/more/pool.cpp').write_text(KERNEL)
    sources = operator_forms.sources_near(tmp_path / 'a/pool.py')
    assert len(sources) == 2 and not operator_forms.source_hash(sources, 'pool_forward')


def test_of_several_extensions_it_is_the_one_that_a_setup_builds_by_that_name(tmp_path):
    (tmp_path / 'ops/kernels').mkdir(parents=True)
    for folder in ('ops', 'ops/used'):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / '__init__.py').touch()
    for name in ('first', 'second'):
        package(tmp_path / 'ops/kernels' / name, KERNEL.replace('x + START', f'x + START + {len(name)}'))
        (tmp_path / 'ops/kernels' / name / 'src/pool.cu').rename(
            tmp_path / 'ops/kernels' / name / f'{name}.cu'
        )
    (tmp_path / 'ops/kernels/setup.py').write_text(
        "E('pool_of_one', ['./first/first.cu'])\n"
        "E(name='x.pool_of_two', module='x', sources=['second/second.cu'])\n"
    )
    file = str(tmp_path / 'ops/used/user.py')
    for name, place in dict(pool_of_one='first', pool_of_two='second').items():
        assert operator_forms.sources_of(file, name) == [tmp_path / 'ops/kernels' / place / f'{place}.cu']
        assert operator_forms.is_compiled(name, file)
    assert operator_forms.sources_of(file, 'pool') == [] and not operator_forms.is_compiled('pool', file)


def test_places_in_groups_count_the_entries_before():
    groups = torch.tensor([3, 1, 3, 3, 0, 1])
    places = torch.zeros_like(groups)
    forms.places_in_groups(groups, places)
    assert places.tolist() == [0, 0, 1, 2, 0, 1]


def test_an_operator_of_another_source_is_named_with_it(tmp_path, monkeypatch):
    package(tmp_path / 'unknown_pools', KERNEL.replace('pool_forward', 'dynamic_voxelize'))
    (tmp_path / 'unknown_pools/pool.py').write_text('from .pool_ext import dynamic_voxelize\n')
    digest = operator_forms.source_hash([tmp_path / 'unknown_pools/src/pool.cu'], 'dynamic_voxelize')
    monkeypatch.syspath_prepend(str(tmp_path))
    compat.apply()
    from unknown_pools.pool import dynamic_voxelize

    with pytest.raises(AbsentPackageError, match=rf'dynamic_voxelize .*{digest}.*--parts'):
        dynamic_voxelize(1, 2)
    for name in ('unknown_pools', 'unknown_pools.pool'):
        del sys.modules[name]


SIZE, LIMITS = [1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 3.0, 2.0, 4.0]
POINTS = torch.tensor([[2.5, 0.5, 3.0], [-4.0, 1.5, 9.0], [0.5, 0.5, 0.5], [2.5, 0.5, 2.5]])


def test_cells_are_z_first_and_points_outside_dropped_or_moved():
    cells = torch.zeros(4, 3, dtype=torch.int32)
    forms.dynamic_voxelize(POINTS, cells, SIZE, LIMITS)
    assert cells.tolist() == [[2, 0, 1], [-1, -1, -1], [0, 0, 0], [2, 0, 1]]
    forms.dynamic_voxelize(POINTS, cells, SIZE, LIMITS, z_first=True)
    assert cells.tolist() == [[1, 0, 2], [-1, -1, -1], [0, 0, 0], [1, 0, 2]]
    forms.dynamic_voxelize(POINTS, cells, SIZE, LIMITS, z_first=True, moved=True)
    assert cells.tolist() == [[1, 0, 2], [1, 1, 0], [0, 0, 0], [1, 0, 2]]


@pytest.mark.parametrize(('options', 'expected'), [({}, [2]), (dict(stops=True), [1])])
def test_points_behind_a_dropped_voxel_are_dropped_in_mmdet3d_0_11(options, expected):
    voxels, cells = torch.zeros(1, 5, 3), torch.zeros(1, 3, dtype=torch.int32)
    counts = torch.zeros(1, dtype=torch.int32)
    size = forms.hard_voxelize(POINTS, voxels, cells, counts, SIZE, LIMITS, 5, 1, z_first=True, **options)
    assert (size, cells.tolist(), counts.tolist()) == (1, [[1, 0, 2]], expected)


def test_point_features_are_reduced_by_voxel():
    features = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    cells = torch.tensor([[1, 0], [0, 3], [-1, 2], [1, 0]])
    sums, voxels, of_points, counts = forms.dynamic_point_to_voxel(features, cells, 'mean')
    assert (sums.tolist(), voxels.tolist()) == ([[2.0], [4.5]], [[0, 3], [1, 0]])
    assert (of_points.tolist(), counts.tolist()) == ([1, 0, -1, 1], [1, 2])
    inside = cells[[0, 1, 3]]
    sums, voxels, of_points, _ = forms.dynamic_point_to_voxel(
        features[[0, 1, 3]], inside, 'max', without_first=True
    )
    assert (sums.tolist(), voxels.tolist(), of_points.tolist()) == ([[8.0]], [[1, 0]], [0, -1, 0])


def test_boxes_of_mmdet3d_0_hold_points_by_their_yaw():
    boxes = torch.tensor([[[1.0, 0, 0, 2, 6, 2, 0], [1.0, 0, 0, 2, 6, 2, math.pi / 2]]])  # long in y, in x
    points = torch.tensor([[[1.0, 2.5, 1], [3.5, 0, 1], [1.0, 0, 2.1], [1, 0, 0]]])
    expected = [[True, False], [False, True], [False, False], [True, True]]
    assert forms.are_in_boxes(points, boxes)[0].tolist() == expected
    first = torch.full((1, 4), -1, dtype=torch.int32)
    forms.points_in_boxes_gpu(boxes, points, first)
    assert first.tolist() == [[0, 1, -1, 0]]
    yaw = 0.4  # clockwise: the length's axis, from -y at yaw 0, turns to -x
    ahead = torch.tensor([[[1 - 2.5 * math.sin(yaw), -2.5 * math.cos(yaw), 1]]])
    turned = boxes[:, :1].clone()
    turned[..., 6] = yaw
    assert forms.are_in_boxes(ahead, turned).tolist() == [[[True]]]


def test_nms_of_turned_boxes_measures_their_overlap():
    boxes = torch.tensor(
        [[0.0, 0, 4, 2, 0.3], [0, 0, 4, 2, 0.3], [0, 0, 4, 2, math.pi / 2 + 0.3], [9, 9, 10, 10, 0]]
    )
    ious = torch.zeros(4, 4)
    forms.boxes_iou_bev(boxes, boxes, ious)
    expected = torch.tensor([1, 1, 4 / 12, 0])  # a cross of 2 by 2 cells
    torch.testing.assert_close(ious[0], expected, atol=1e-5, rtol=0)
    kept = torch.zeros(4, dtype=torch.long)
    assert kept[: forms.nms_of_turned_boxes(boxes, kept, 0.5)].tolist() == [0, 2, 3]


def test_kernel_attention_sums_cells_of_all_levels():
    generator = torch.Generator().manual_seed(0)
    shapes, starts = torch.tensor([[2, 3], [1, 2]]), torch.tensor([0, 6])
    values = torch.rand(2, 8, 2, 4, generator=generator)
    places = torch.randint(-1, 4, (2, 5, 2, 2, 3, 2), generator=generator)
    weights = torch.rand(2, 5, 2, 2, 3, generator=generator)
    expected = torch.zeros(2, 5, 2, 4)
    for index in torch.cartesian_prod(*map(torch.arange, places.shape[:-1])).tolist():
        sample, query, head, level, _ = index
        (height, width), (x, y) = shapes[level].tolist(), places[tuple(index)].tolist()
        cell = int(starts[level]) + min(max(y, 0), height - 1) * width + min(max(x, 0), width - 1)
        expected[sample, query, head] += values[sample, cell, head] * weights[tuple(index)]
    sums = forms.geometric_kernel_attention(values, shapes, starts, places, weights, 64)
    torch.testing.assert_close(sums, expected.flatten(2))


def test_operators_of_a_module_that_fails_without_cuda_run(tmp_path, monkeypatch):
    folder = tmp_path / 'fails_without_cuda'
    package(folder)
    (folder / '__init__.py').write_text('raise OSError("needs cuda")\npool_ext = load("pool_ext")\n')
    (tmp_path / 'uses_cuda.py').write_text('import fails_without_cuda as ops\n')
    digest = operator_forms.source_hash([folder / 'src/pool.cu'], 'pool_forward')
    monkeypatch.setitem(operator_forms.known_forms(), 'pool_forward', {digest: lambda x, n: x + n})
    monkeypatch.syspath_prepend(str(tmp_path))
    compat.apply()
    from uses_cuda import ops

    assert ops.pool_ext.pool_forward(1, 2) == 3
    with pytest.raises(AbsentPackageError, match='needs cuda'):
        ops.pool_ext.other(1)
    del sys.modules['uses_cuda']


def test_bev_features_are_summed_per_cell():
    cells = torch.tensor([[[1, 0, 0], [1, 0, 1], [5, 0, 0]], [[0, 1, 0], [0, 1, 0], [0, -1, 0]]])
    features, sums = torch.arange(12.0).reshape(2, 3, 2), torch.zeros(2, 2, 2, 2)
    places = torch.full((2, 3, 3), -1)
    forms.voxel_pooling(2, 3, 2, torch.tensor(2), 2, 2, cells, features, sums, places)
    assert sums[0, 0, 1].tolist() == [2, 4] and sums[1, 1, 0].tolist() == [14, 16]
    assert sums.sum() == 36 and places[0].tolist() == [[0, 0, 1], [0, 0, 1], [-1, -1, -1]]


def test_local_attention_is_a_loop_over_the_cells_around():
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 2, 3, 4, 5, generator=generator)
    products = forms.local_similarity(maps, others, 3, 5)
    weights = torch.rand(2, 4, 5, 15, generator=generator)
    sums = forms.local_sums(maps, weights, 3, 5)
    for row, column in itertools.product(range(4), range(5)):
        expected = torch.zeros(2, 3)
        for cell, (down, right) in enumerate(itertools.product(range(-1, 2), range(-2, 3))):
            y, x = row + down, column + right
            inside = 0 <= y < 4 and 0 <= x < 5
            product = (maps[:, :, row, column] * others[:, :, y, x]).sum(1) if inside else torch.zeros(2)
            torch.testing.assert_close(products[:, row, column, cell], product)
            if inside:
                expected += maps[:, :, y, x] * weights[:, row, column, cell, None]
        torch.testing.assert_close(sums[:, :, row, column], expected)


def test_samples_of_the_nearest_view_are_those_between_four_pixels():
    rng = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 3, height, width, 2, generator=rng) for height, width in ((4, 5), (2, 3))]
    places, weights = torch.rand(1, 6, 2, 3, generator=rng), torch.rand(1, 6, 2, 2, generator=rng)
    places[0, 0, 0] = 1.0
    expected = torch.zeros(1, 6, 2, 2)
    for query, point, level in itertools.product(range(6), range(2), range(2)):
        x, y, view = places[0, query, point].tolist()
        pixels = levels[level][0, round(view * 2)]
        height, width, _ = pixels.shape
        x, y = x * (width - 1), y * (height - 1)
        for row, column in itertools.product(range(height), range(width)):
            share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            expected[0, query, :, point] += share * weights[0, query, point, level] * pixels[row, column]
    torch.testing.assert_close(forms.samples_of_views(*levels, places, weights), expected)
