"""Files come back as the graph that was written, and damaged ones are refused by name."""

import dataclasses
import functools
import os

import numpy as np
import onnx
import pytest

import scn_nets
from mmdeploy_ext.core.errors import ExportError, ModelFileError
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


@pytest.fixture
def path(tmp_path):
    libspconv.write(graph(), tmp_path / 'lidar.onnx')
    return tmp_path / 'lidar.onnx'


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


def test_weights_beyond_fp16_are_refused(tmp_path):
    first = graph().nodes[0]
    first = dataclasses.replace(first, weight=first.weight.astype(np.float32) + 7e4)
    with pytest.raises(ExportError, match=r'spconv0.weight \(conv_input.0\)'):
        libspconv.write(dataclasses.replace(graph(), nodes=(first, *graph().nodes[1:])), tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == []


# ---- what cannot be read


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda node: node.ClearField('attribute'), "conv3: .*'kernel_size'"),
        (lambda node: node.input.pop(), 'conv3: .*bias'),
        (lambda node: node.input.__setitem__(0, '77'), "conv3: .*'77'"),
        (lambda node: setattr(node, 'op_type', 'Conv'), "conv3: .*'Conv'"),
    ],
)
def test_what_the_engine_would_misread_is_refused_by_node(path, change, named):
    model = onnx.load(path)
    change(next(node for node in model.graph.node if node.name == 'conv3'))
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=rf'lidar\.onnx: {named}'):
        libspconv.read(path)
    with pytest.raises(ModelFileError, match=r'absent\.onnx'):
        libspconv.read(path.with_name('absent.onnx'))
