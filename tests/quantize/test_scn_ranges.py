"""Ranges of a sparse graph: the file that people edit, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import toy_sparse_graph
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.sparse.ir import SparseConvolution
from mmdeploy_ext.sparse.ranges import NodeRange, Ranges, from_amax, graph_digest, quantised, weight_norm


@pytest.fixture
def graph():
    return toy_sparse_graph.graph()


@pytest.fixture
def ranges(graph):
    nodes = {}
    for index, node in enumerate(quantised(graph)):
        kernel = ()
        if isinstance(node, SparseConvolution):
            kernel = tuple(map(float, np.abs(node.weight).max(axis=(1, 2, 3, 4)))), weight_norm(node)
        nodes[node.name] = NodeRange(node.module, 1.5 + index, *kernel)
    return Ranges(nodes, 'max', 'hand', 1, graph_digest(graph), 'a' * 64)


def edited(ranges, tmp_path, change):
    content = ranges.to_json()
    change(content)
    path = tmp_path / 'ranges.json'
    path.write_text(json.dumps(content))
    return path


def reversed_axes(graph):
    """The same network in the other coordinate order."""
    turned = []
    for node in graph.nodes:
        if isinstance(node, SparseConvolution):
            names = ('kernel_size', 'stride', 'padding', 'dilation', 'output_padding')
            names += ('input_spatial_shape', 'output_spatial_shape')
            triples = {name: getattr(node, name)[::-1] for name in names}
            node = dataclasses.replace(node, weight=node.weight.transpose(0, 3, 2, 1, 4), **triples)
        turned.append(node)
    return dataclasses.replace(
        graph, nodes=tuple(turned), order='zyx', spatial_shape=graph.spatial_shape[::-1]
    )


def test_a_saved_file_reads_back_equal_and_is_checked(ranges, graph, tmp_path):
    path = tmp_path / 'ranges.json'
    ranges.save(path)
    read = Ranges.load(path)
    assert dataclasses.replace(read, path='') == ranges
    read.check(graph, 'a' * 64)
    assert read.missing(graph) == []


def test_ranges_serve_both_coordinate_orders(ranges, graph):
    ranges.check(reversed_axes(graph))


def test_an_edited_range_is_taken(ranges, graph, tmp_path):
    path = edited(ranges, tmp_path, lambda content: content['nodes']['conv1'].update(input_amax=7))
    read = Ranges.load(path)
    read.check(graph)
    assert read.input_amax('conv1') == 7


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
        ranges.check(toy_sparse_graph.graph(seed=1), 'b' * 64)


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
    with pytest.raises(UsageError, match=r'ptq\.pth.*conv_input\.0\._input_quantizer'):
        from_amax(graph, {**amax, 'conv_input.0.input_quantizer._amax': 1.0}, 'ptq.pth')
    del amax['conv_input.0._input_quantizer']
    assert from_amax(graph, amax).missing(graph) == ['conv0.input_amax']
    amax['block.0.conv1._weight_quantizer'] = amax.pop('block.0.conv1._weight_quantizer._amax').reshape(-1)[
        :-1
    ]
    with pytest.raises(UsageError, match=r'conv1 \(block\.0\.conv1\).*7.*8'):
        from_amax(graph, amax)
