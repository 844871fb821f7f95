"""Precisions, overrides by pattern, and ranges that have to be there."""

import numpy as np
import pytest

import scn_nets
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.precision import apply_precision, fp16_ends
from mmdeploy_ext.exporting.sparse.ranges import NodeRange, Ranges
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution


@pytest.fixture(scope='module')
def graph():
    return fold(scn_nets.traced_small())


@pytest.fixture(scope='module')
def ranges(graph):
    nodes = {}
    for node in graph.nodes:
        if isinstance(node, SparseConvolution):
            nodes[node.name] = NodeRange(
                node.module, 1.1, tuple(np.abs(node.weight).max((1, 2, 3, 4)).tolist())
            )
        elif isinstance(node, Add):
            nodes[node.name] = NodeRange(node.module, 2.2)
    return Ranges(nodes, 'max', 'a test', 1, '')


def precisions(graph):
    return {
        node.name: (node.precision, node.output_precision)
        for node in graph.nodes
        if isinstance(node, SparseConvolution | Add)
    }


def test_ends_in_fp16(graph, ranges):
    found = precisions(apply_precision(graph, 'int8', fp16_ends(graph), ranges))
    last = graph.convolutions()[-1].name
    assert found.pop('conv0') == ('fp16', 'int8')
    assert found.pop(last) == ('int8', 'fp16')
    assert set(found.values()) == {('int8', 'int8')}


def test_patterns_fit_names_and_modules_and_the_last_counts(graph, ranges):
    overrides = {
        'encoder_layers.encoder_layer1.*': 'fp16',
        'conv2': ('fp16', 'int8'),
        'add?': 'fp16',
        'conv1*': 'int8',
    }
    found = precisions(apply_precision(graph, 'int8', overrides, ranges))
    assert found['conv1'] == ('int8', 'int8')
    assert found['conv2'] == ('fp16', 'int8')
    assert found['conv3'] == ('fp16', 'fp16')
    assert found['add3'] == ('fp16', 'fp16')
    assert found['conv0'] == ('int8', 'int8')


def test_a_pattern_that_fits_nothing_is_an_error(graph, ranges):
    with pytest.raises(UsageError, match="'conv99'"):
        apply_precision(graph, 'int8', {'conv99': 'fp16'}, ranges)
