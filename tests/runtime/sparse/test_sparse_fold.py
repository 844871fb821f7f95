"""Folding changes no result, in either precision, and refuses what cannot be folded."""

import numpy as np
import pytest

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.runtime.sparse.ir import BatchNorm, Relu, SparseConvolution, SparseGraph

GRID = (1, 1, 1)


def convolution(name='conv0', inputs=('0',), output='1', bias=None, seed=0):
    """A 1x1x1 convolution of three channels."""
    weight = np.random.default_rng(seed).standard_normal((3, 1, 1, 1, 3)).astype(np.float32)
    ones, zeros = (1, 1, 1), (0, 0, 0)
    return SparseConvolution(
        name, f'net.{name}', inputs, output, weight, bias, ones, ones, zeros, ones, zeros, True, GRID, GRID
    )


def norm(inputs=('1',), output='2', seed=1, eps=1e-3):
    gamma, beta, mean, var = np.random.default_rng(seed).uniform(0.5, 2, (4, 3)).astype(np.float32)
    return BatchNorm(f'bn{output}', f'net.bn{output}', inputs, output, gamma, beta, mean, var, eps)


def relu(inputs=('2',), output='3'):
    return Relu(f'relu{output}', f'net.relu{output}', inputs, output)


def graph(*nodes, output=None):
    output = output or nodes[-1].output
    return SparseGraph(tuple(nodes), 'xyz', GRID, 3, output, (1, 3, 1, 1))


def test_a_relu_stays_where_its_convolution_is_used_without_it():
    plain = graph(convolution(), relu(('1',), '2'), convolution('conv1', ('1',), '3'), output='2')
    assert [type(node) for node in fold(plain).nodes] == [SparseConvolution, Relu, SparseConvolution]


@pytest.mark.parametrize(
    ('nodes', 'said'),
    [
        ((norm(('0',), '1'), convolution(inputs=('1',), output='2')), 'net.bn1'),
        ((convolution(), relu(('1',), '2'), norm(('2',), '3')), 'net.bn3: .*net.conv0'),
        (
            (convolution(), norm(), convolution('conv1', ('1',), '3')),
            'net.bn2: .*net.conv0',
        ),
    ],
)
def test_a_norm_that_cannot_be_folded_is_refused_by_name(nodes, said):
    with pytest.raises(ExportError, match=said):
        fold(graph(*nodes))


def test_one_module_can_be_folded_in_fp16_alone():
    first, second = convolution('conv0', ('0',), '1'), convolution('conv1', ('2',), '3', seed=3)
    both = graph(first, norm(('1',), '2'), second, norm(('3',), '4', seed=4))
    mixed, halves = fold(both, 'fp32', ['net.conv0']).nodes, fold(both, 'fp16').nodes
    assert [node.weight.dtype for node in mixed] == [np.float16, np.float32]
    assert np.array_equal(mixed[0].weight, halves[0].weight)
    assert np.array_equal(mixed[0].bias, halves[0].bias)
    assert np.array_equal(mixed[1].weight, fold(both).nodes[1].weight)
