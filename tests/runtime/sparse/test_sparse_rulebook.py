"""The rulebook against dictionaries and loops, and what it refuses."""

import dataclasses
import itertools

import numpy as np
import pytest

import scn_goldens
import toy_sparse
from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.runtime.sparse.plan import dense_output_shape, plan_of
from mmdeploy_ext.runtime.sparse.rulebook import Level, build, pairs

GRID = (13, 11, 9)
ONES = (1, 1, 1)
SUBMANIFOLD = [((3, 3, 3), ONES), ((1, 1, 3), ONES), ((5, 3, 1), ONES), ((3, 3, 3), (2, 1, 3)), (ONES, ONES)]
STRIDED = [
    ((3, 3, 3), (2, 2, 2), ONES, ONES),
    ((3, 3, 3), (2, 2, 2), (1, 1, 0), ONES),
    ((1, 1, 3), (1, 1, 2), (0, 0, 0), ONES),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0), ONES),
    ((2, 2, 2), (2, 2, 2), (0, 0, 0), ONES),
    ((2, 3, 4), (1, 3, 2), (1, 0, 2), (2, 1, 1)),
    (ONES, (2, 2, 2), (0, 0, 0), ONES),
]


def submanifold_table(level, kernel_size, dilation=(1, 1, 1)):
    """Return the neighbours of a submanifold convolution; N, one behind the last row, is none."""
    return pairs(level.coordinates, level.spatial_shape, True, kernel_size, ONES, (0, 0, 0), dilation)[1].T


def strided_level(level, kernel_size, stride, padding, dilation=(1, 1, 1)):
    """Return the sites that a convolution reaches, in ascending order, and its table."""
    grid = level.spatial_shape
    coordinates, table = pairs(level.coordinates, grid, False, kernel_size, stride, padding, dilation)
    sizes = zip(grid, kernel_size, stride, padding, dilation, strict=True)
    reached = [(size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes]
    return Level(coordinates, reached), table.T


def slow_table(sources, targets, kernel, stride, padding, dilation):
    """Input row by output row and offset; N where there is none."""
    rows = {tuple(site): row for row, site in enumerate(sources.tolist())}
    offsets = list(itertools.product(*map(range, kernel)))
    table = np.full((len(targets), len(offsets)), len(sources), np.int32)
    for i, (sample, *site) in enumerate(targets.tolist()):
        for k, offset in enumerate(offsets):
            at = [
                p * s - pad + o * d
                for p, s, pad, o, d in zip(site, stride, padding, offset, dilation, strict=True)
            ]
            table[i, k] = rows.get((sample, *at), len(sources))
    return table


def slow_targets(sources, shape, kernel, stride, padding, dilation):
    found = set()
    for sample, *site in sources.tolist():
        for offset in itertools.product(*map(range, kernel)):
            at = [p + pad - o * d for p, pad, o, d in zip(site, padding, offset, dilation, strict=True)]
            if all(a % s == 0 and 0 <= a // s < size for a, s, size in zip(at, stride, shape, strict=True)):
                found.add((sample, *(a // s for a, s in zip(at, stride, strict=True))))
    return np.array(sorted(found), np.int32).reshape(-1, 4)


def sites(rows):
    return toy_sparse.voxels(GRID, rows)[1] if rows else np.zeros((0, 4), np.int32)


@pytest.mark.parametrize('rows', [0, 1, 150])
@pytest.mark.parametrize(('kernel', 'dilation'), SUBMANIFOLD)
def test_submanifold_tables_equal_a_search_by_dictionary(rows, kernel, dilation):
    coordinates = sites(rows)
    padding = [size // 2 * dil for size, dil in zip(kernel, dilation, strict=True)]
    expected = slow_table(coordinates, coordinates, kernel, ONES, padding, dilation)
    assert np.array_equal(submanifold_table(Level(coordinates, GRID), kernel, dilation), expected)


@pytest.mark.parametrize('rows', [0, 1, 150])
@pytest.mark.parametrize('geometry', STRIDED)
def test_strided_sites_and_tables_equal_a_search_by_dictionary(rows, geometry):
    coordinates = sites(rows)
    shape = dense_output_shape(GRID, *geometry)
    level, table = strided_level(Level(coordinates, GRID), *geometry)
    expected = slow_targets(coordinates, shape, *geometry)
    assert level.spatial_shape == shape
    assert np.array_equal(level.coordinates, expected)  # sorted: ascending order is part of the claim
    assert np.array_equal(table, slow_table(coordinates, expected, *geometry))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(inverse=True), 'conv5 '),
        (dict(output_spatial_shape=(9, 9, 9)), 'conv5 '),
    ],
)
def test_what_has_no_rulebook_is_refused_by_name(change, message):
    graph = toy_sparse.bevfusion()
    nodes = tuple(
        dataclasses.replace(node, **change) if node.name == 'conv5' else node for node in graph.nodes
    )
    with pytest.raises(ExportError, match=message):
        plan_of(dataclasses.replace(graph, nodes=nodes))


def test_the_real_sweep_has_the_goldens_sites():
    _, coordinates = scn_goldens.voxels('input_real_bevfusion')
    graph = toy_sparse.bevfusion(toy_sparse.FULL_GRID)
    rulebook = build(plan_of(graph), coordinates, 2)
    assert [len(level) for level in rulebook.levels] == [17748, 27774, 18711, 10476, 8815]
