"""Ranges of a sparse graph: the file that people edit, and what is refused."""

import dataclasses

import numpy as np
import pytest

import toy_sparse
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.sparse.ranges import (
    NodeRange,
    Ranges,
    from_amax,
    graph_digest,
    quantised,
    weight_norm,
)
from mmdeploy_ext.runtime.sparse.ir import SparseConvolution


@pytest.fixture
def graph():
    return toy_sparse.small()


@pytest.fixture
def ranges(graph):
    nodes = {}
    for index, node in enumerate(quantised(graph)):
        kernel = ()
        if isinstance(node, SparseConvolution):
            kernel = tuple(map(float, np.abs(node.weight).max(axis=(1, 2, 3, 4)))), weight_norm(node)
        nodes[node.name] = NodeRange(node.module, 1.5 + index, *kernel)
    return Ranges(nodes, 'max', 'hand', 1, graph_digest(graph), 'a' * 64)


def test_a_saved_file_reads_back_equal_and_is_checked(ranges, graph, tmp_path):
    path = tmp_path / 'ranges.json'
    ranges.save(path)
    read = Ranges.load(path)
    assert dataclasses.replace(read, path='') == ranges
    read.check(graph, 'a' * 64)
    assert read.missing(graph) == []


def test_complete_names_what_is_missing(ranges, graph):
    nodes = dict(ranges.nodes)
    del nodes['add0'], nodes['conv2']
    nodes['conv3'] = dataclasses.replace(nodes['conv3'], weight_amax=None)
    lacking = dataclasses.replace(ranges, nodes=nodes)
    expected = ['conv2.input_amax', 'conv2.weight_amax', 'add0.input_amax', 'conv3.weight_amax']
    assert lacking.missing(graph) == expected
    with pytest.raises(UsageError, match=r'conv2\.input_amax'):
        lacking.check(graph)
    with pytest.raises(UsageError, match=r'add0\.input_amax'):
        lacking.input_amax('add0')


def test_ranges_of_another_network_are_refused(ranges, graph):
    other = dataclasses.replace(graph, spatial_shape=(24, 24, 11))
    with pytest.raises(UsageError, match='another network'):
        ranges.check(other)


def test_ranges_of_another_checkpoint_are_refused(ranges):
    with pytest.raises(UsageError, match=r'\(checkpoint.*bbbbbbbbbbbb\)'):
        ranges.check(toy_sparse.small('other.'), 'b' * 64)


def test_ranges_come_from_a_quantised_checkpoint(graph):
    amax = {}
    for node in graph.convolutions():
        amax[f'{node.module}._input_quantizer'] = np.float32(2.5)
        amax[f'{node.module}._weight_quantizer._amax'] = np.full((1, 1, 1, 1, node.out_channels), 0.25)
    amax['block.0.quant_add._input_quantizer'] = [4.0]
    ranges = from_amax(graph, amax, 'ptq.pth')
    ranges.check(graph)
    assert ranges.input_amax('add0') == 4
    np.testing.assert_array_equal(ranges.weight_amax('conv3'), np.full(16, 0.25, np.float32))
    del amax['conv_input.0._input_quantizer']
    assert from_amax(graph, amax).missing(graph) == ['conv0.input_amax']
