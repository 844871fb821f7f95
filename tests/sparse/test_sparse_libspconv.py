"""Files come back as the graph that was written, and damaged ones are refused by name."""

import dataclasses
import functools
import json
import os

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scn_nets
from mmdeploy_ext.core.errors import ExportError, Mm2OnnxError, ModelFileError
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.sparse import libspconv
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.ir import (
    Add,
    Relu,
    ScatterDense,
    SparseConvolution,
    SparseGraph,
    Transpose,
    differences,
)
from mmdeploy_ext.sparse.libspconv import from_onnx
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


def test_the_same_graph_gives_the_same_bytes(tmp_path, path):
    libspconv.write(graph(), tmp_path / 'again.onnx', {})
    assert (tmp_path / 'again.onnx').read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ['again.onnx', 'lidar.onnx']


def test_metadata_is_kept_beside_the_module_paths(tmp_path):
    libspconv.write(graph(), tmp_path / 'm.onnx', {'mm2onnx.family': '"bevfusion"'})
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / 'm.onnx').metadata_props}
    assert props['mm2onnx.family'] == '"bevfusion"'
    assert json.loads(props['mm2onnx.scn_modules'])['conv0'] == 'conv_input.0'


def test_a_file_without_metadata_is_read_without_module_paths(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    found = from_onnx(model)
    bare = tuple(dataclasses.replace(node, module='') for node in graph().nodes)
    assert differences(found, dataclasses.replace(graph(), nodes=bare)) == []


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


@settings(max_examples=60, deadline=None)
@given(conv=convolutions(), order=st.sampled_from(['xyz', 'zyx']), data=st.data())
def test_any_graph_comes_back(conv, order, data):
    shape = conv.output_spatial_shape
    dense = (1, conv.out_channels, *shape)
    add = Add(
        'add0',
        'm',
        ('1', '1'),
        '2',
        data.draw(precisions),
        data.draw(precisions),
        data.draw(st.none() | floats),
    )
    written = SparseGraph(
        (
            conv,
            add,
            Relu('relu0', 'm', ('2',), '3'),
            ScatterDense('scatter0', '', ('3',), '4', shape, dense),
            Transpose('transpose0', '', ('4',), '5', tuple(data.draw(st.permutations(range(5))))),
        ),
        order,
        conv.input_spatial_shape,
        conv.in_channels,
        '5',
        dense,
        data.draw(small),
    )
    model = libspconv.to_onnx(written)
    content = model.SerializeToString()
    assert differences(from_onnx(onnx.ModelProto.FromString(content)), written) == []


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


@pytest.mark.parametrize(
    ('change', 'message'), [(dict(transposed=True), 'is transposed'), (dict(groups=2), 'has 2 groups')]
)
def test_a_convolution_that_the_engine_computes_as_another_is_refused_by_layer(change, message):
    first, *others = graph().nodes
    changed = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, **change), *others))
    with pytest.raises(ExportError, match=rf'conv0 \(conv_input.0\): {message}.*one group'):
        libspconv.to_onnx(changed)
    inverse = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, inverse=True), *others))
    assert libspconv.from_onnx(libspconv.to_onnx(inverse)).convolutions()[0].inverse


def test_weights_beyond_fp16_are_refused(tmp_path):
    first = graph().nodes[0]
    first = dataclasses.replace(first, weight=first.weight.astype(np.float32) + 7e4)
    with pytest.raises(ExportError, match=r'spconv0.weight \(conv_input.0\): .*beyond fp16'):
        libspconv.write(dataclasses.replace(graph(), nodes=(first, *graph().nodes[1:])), tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == []


def test_a_file_stands_where_the_folder_should_be(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(Mm2OnnxError, match='could not be written'):
        libspconv.write(graph(), tmp_path / 'file' / 'm.onnx')


# ---- what cannot be read


def test_missing_empty_and_foreign_files_are_refused(tmp_path, path):
    with pytest.raises(ModelFileError, match=r'absent\.onnx'):
        libspconv.read(tmp_path / 'absent.onnx')
    with pytest.raises(ModelFileError, match=str(tmp_path)):
        libspconv.read(tmp_path)
    for content in (b'', b'\x00' * 64, b'PK\x03\x04 a zip'):
        (tmp_path / 'other.onnx').write_bytes(content)
        with pytest.raises(ModelFileError, match=r'other\.onnx'):
            libspconv.read(tmp_path / 'other.onnx')
    (tmp_path / 'short.onnx').write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelFileError, match=r'short\.onnx'):
        libspconv.read(tmp_path / 'short.onnx')


def test_of_two_tensors_of_one_name_the_first_is_read_as_the_engine_does(path):
    model = onnx.load(path)
    before = from_onnx(model).convolutions()[0].bias
    second = model.graph.initializer.add()
    (first,) = (tensor for tensor in model.graph.initializer[:-1] if tensor.name == 'spconv0.bias')
    second.CopyFrom(first)
    second.raw_data = np.full_like(before, 7).tobytes()
    assert np.array_equal(from_onnx(model).convolutions()[0].bias, before)


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
    with pytest.raises(ExportError, match=r'add0 \(m\): adds tensors of two convolutions'):
        ImplicitGemm(graph, NodeWriter()).write('sites', 'features')


def test_an_ordinary_onnx_file_is_refused(tmp_path):
    node = onnx.helper.make_node('Conv', ['x', 'w'], ['y'], name='first')
    x = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], 'g', [x], [])), tmp_path / 'm.onnx')
    with pytest.raises(ModelFileError, match=r"op_type 'Conv'.*SparseConvolution"):
        libspconv.read(tmp_path / 'm.onnx')


def attribute(model, node, name):
    found = next(item for item in model.graph.node if item.name == node)
    return found, next(item for item in found.attribute if item.name == name)


def drop(model, node, name):
    found, item = attribute(model, node, name)
    found.attribute.remove(item)


def retype(model, node, name, value):
    found, item = attribute(model, node, name)
    found.attribute.remove(item)
    found.attribute.append(onnx.helper.make_attribute(name, value))


def stride_of_conv3(value):
    return lambda model: retype(model, 'conv3', 'stride', value)


def change_weight(name, field, value):
    return lambda model: setattr(weight(model, name), field, value)


DAMAGES = {
    "conv3: attribute 'stride' is missing": lambda model: drop(model, 'conv3', 'stride'),
    "conv3: attribute 'stride' is STRING, expected INTS": stride_of_conv3('111'),
    "conv3: attribute 'stride' has 2 values, expected 3": stride_of_conv3([1, 1]),
    "conv0: has precision='fp8'": lambda model: add_attribute(model, 0, precision='fp8'),
    "scatter0: has the format 'yxz'": lambda model: retype(model, 'scatter0', 'format', 'yxz'),
    r'transpose0: has dims \[0, 1, 1\]': lambda model: retype(model, 'transpose0', 'dims', [0, 1, 1]),
    "conv4: reads tensor '77', which no node": lambda model: rename(model, 'conv4', '77'),
    "conv5: initializer 'spconv5.weight' is missing": change_weight('spconv5.weight', 'name', 'lost'),
    "conv5: initializer 'spconv5.weight' has 7 bytes": change_weight(
        'spconv5.weight', 'raw_data', b'1234567'
    ),
    "conv5: initializer 'spconv5.weight' is FLOAT ": change_weight('spconv5.weight', 'data_type', 1),
    r'conv0: initializer .* is FLOAT16 \[4, 3, 3, 3, 6\], expected FLOAT16 \[4, 3, 3, 3, 5\]': (
        lambda model: weight(model, 'spconv0.weight').dims.__setitem__(4, 6)
    ),
    "relu0: has op_type 'Sigmoid'": lambda model: setattr(model.graph.node[4], 'op_type', 'Sigmoid'),
    "graph input '0': has the shape": lambda model: model.graph.input[0].type.tensor_type.shape.dim.pop(),
    'graph output: there are 0, expected 1': lambda model: model.graph.output.pop(),
    "the output: reads tensor '99'": lambda model: setattr(model.graph.output[0], 'name', '99'),
    "conv1: gives tensor '1' a second time": lambda model: model.graph.node[1].output.__setitem__(0, '1'),
    'conv0: is the name of two nodes': lambda model: setattr(model.graph.node[1], 'name', 'conv0'),
    'SparseConvolution: a node has no name': lambda model: setattr(model.graph.node[1], 'name', ''),
    'scn_modules: is not JSON': lambda model: setattr(model.metadata_props[0], 'value', '{'),
    'add0: has the input ranges 1.0 and 2.0': (
        lambda model: add_attribute(model, 3, input0_dynamic_range=1.0, input1_dynamic_range=2.0)
    ),
}


def add_attribute(model, index, **values):
    for name, value in values.items():
        model.graph.node[index].attribute.append(onnx.helper.make_attribute(name, value))


def weight(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def rename(model, node, name):
    next(item for item in model.graph.node if item.name == node).input[0] = name


@pytest.mark.parametrize('said', DAMAGES)
def test_damage_is_named(path, said):
    model = onnx.load(path)
    DAMAGES[said](model)
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=f'lidar.onnx: .*{said}'):
        libspconv.read(path)


@functools.cache
def content():
    return libspconv.to_onnx(graph()).SerializeToString()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_crash_the_reader(tmp_path_factory, data):
    damaged = bytearray(content())
    size = len(damaged)
    head = st.integers(0, min(size, 6000) - 1)  # the nodes come first: that is where flips hurt
    for place in data.draw(st.lists(head | st.integers(0, size - 1), min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / 'flipped.onnx'
    path.write_bytes(damaged)
    try:
        assert isinstance(libspconv.read(path), SparseGraph)
    except ModelFileError as error:
        assert 'flipped.onnx' in str(error)
