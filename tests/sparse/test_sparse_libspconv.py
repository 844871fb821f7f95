"""Files come back as the graph that was written, and damaged ones are refused by name."""

import dataclasses
import functools
import json
import os

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st

import scn_nets
from mmdeploy_ext.core.errors import ExportError, ModelFileError
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.sparse import libspconv
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.ir import (
    Add,
    SparseConvolution,
    SparseGraph,
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


def test_float32_weights_come_back_rounded(tmp_path):
    written = fold(traced())
    libspconv.write(written, tmp_path / 'm.onnx')
    first = libspconv.read(tmp_path / 'm.onnx').convolutions()[0]
    assert np.array_equal(first.weight, written.convolutions()[0].weight.astype(np.float16))


def test_metadata_is_kept_beside_the_module_paths(tmp_path):
    libspconv.write(graph(), tmp_path / 'm.onnx', {'mm2onnx.family': '"bevfusion"'})
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / 'm.onnx').metadata_props}
    assert props['mm2onnx.family'] == '"bevfusion"'
    assert json.loads(props['mm2onnx.scn_modules'])['conv0'] == 'conv_input.0'


small = st.integers(1, 5)
triples = st.tuples(small, small, small)
floats = st.floats(0.0, 1e4, width=32)
precisions = st.sampled_from(['', 'fp16', 'int8'])


@st.composite
def convolutions(draw):
    kernel, inputs, outputs = draw(triples), draw(small), draw(small)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    ranges = draw(st.none() | st.lists(floats, min_size=outputs, max_size=outputs))
    return SparseConvolution(
        'conv0',
        draw(st.text('ab.é', max_size=4)),
        ('0',),
        '1',
        rng.standard_normal((outputs, *kernel, inputs)).astype(np.float16),
        rng.standard_normal(outputs).astype(np.float16)
        if draw(st.booleans())
        else np.zeros(outputs, np.float16),
        kernel,
        *(draw(triples) for _ in range(4)),
        draw(st.booleans()),
        draw(triples),
        draw(triples),
        inverse=draw(st.booleans()),
        rulebook=draw(st.none() | st.sampled_from(['', 'subm1', 'é'])),
        activation=draw(st.sampled_from(['None', 'ReLU'])),
        input_rows=draw(small),
        output_rows=draw(small),
        output_bound=draw(st.integers(0, 10**9)),
        precision=draw(precisions),
        output_precision=draw(precisions),
        input_range=draw(st.none() | floats),
        weight_ranges=None if ranges is None else np.array(ranges, np.float32),
    )


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


def test_sums_over_sites_of_two_convolutions_are_not_written_for_autoware():
    from mmdeploy_ext.sparse.implicit_gemm import ImplicitGemm
    from mmdeploy_ext.sparse.node_writer import NodeWriter

    geometry = dict(kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), dilation=(1, 1, 1))
    geometry |= dict(output_padding=(0, 0, 0), input_spatial_shape=(4, 4, 4), output_spatial_shape=(2, 2, 2))
    weight = np.zeros((2, 3, 3, 3, 2), np.float32)
    nodes = [
        SparseConvolution(f'conv{i}', f'm{i}', ('0',), str(i + 1), weight, None, **geometry, subm=False)
        for i in range(2)
    ]
    graph = SparseGraph((*nodes, Add('add0', 'm', ('1', '2'), '3')), 'xyz', (4, 4, 4), 2, '3', (1, 2, 2, 2))
    with pytest.raises(ExportError, match=r'add0 \(m\)'):
        ImplicitGemm(graph, NodeWriter()).write('sites', 'features')


def attribute(model, node, name):
    found = next(item for item in model.graph.node if item.name == node)
    return found, next(item for item in found.attribute if item.name == name)


def weight(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
