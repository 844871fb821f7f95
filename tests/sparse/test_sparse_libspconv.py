"""Files come back as the graph that was written, and damaged ones are refused by name."""

import dataclasses
import functools
import os

import numpy as np
import pytest

import scn_nets
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.sparse import libspconv
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.ir import (
    SparseConvolution,
    differences,
)
from mmdeploy_ext.sparse.order import reorder
from mmdeploy_ext.sparse.precision import apply_precision


@functools.cache
def traced():
    small = dict(channels=((4, 4, 8), (8, 8)), paddings=((0, 0, 1), (0, 0)), output_channels=8, base=4)
    return trace(
        scn_nets.bevfusion((20, 24, 9), **small), order='xyz', spatial_shape=(20, 24, 9), in_channels=5
    )


@functools.cache
def graph():
    return fold(traced(), 'fp16')


@pytest.mark.parametrize('order', ['xyz', 'zyx'])
def test_what_is_written_comes_back(tmp_path, order):
    for number, written in enumerate((graph(), apply_precision(graph(), 'fp16'))):
        target = tmp_path / f'{number}.onnx'
        libspconv.write(reorder(written, order), target)
        assert differences(libspconv.read(target), reorder(written, order)) == []


# ---- what cannot be written


def test_an_unfolded_graph_is_refused_by_node(tmp_path):
    with pytest.raises(ExportError, match=r'conv0 \(conv_input.0\)'):
        libspconv.write(traced(), tmp_path / 'm.onnx')
    nodes = tuple(
        dataclasses.replace(node, bias=np.zeros(node.out_channels, np.float32))
        if isinstance(node, SparseConvolution)
        else node
        for node in traced().nodes
    )
    with pytest.raises(ExportError, match=r'bn0 \(conv_input.1\).*BatchNorm'):
        libspconv.write(dataclasses.replace(traced(), nodes=nodes), tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('change', [dict(transposed=True), dict(groups=2)])
def test_a_convolution_that_the_engine_computes_as_another_is_refused_by_layer(change):
    first, *others = graph().nodes
    changed = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, **change), *others))
    with pytest.raises(ExportError, match=r'conv0 \(conv_input.0\)'):
        libspconv.to_onnx(changed)
    inverse = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, inverse=True), *others))
    assert libspconv.from_onnx(libspconv.to_onnx(inverse)).convolutions()[0].inverse


# ---- what cannot be read
