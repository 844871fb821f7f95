"""No constant of a file escapes the comparison with the checkpoint: whatever holds it, whatever its name."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.errors import ModelFileError
from mmdeploy_ext.fold import fuse
from mmdeploy_ext.metadata import PREFIX, Metadata, read_metadata
from mmdeploy_ext.preprocess import read_image
from mmdeploy_ext.spec import GraphSpec, TensorSpec
from mmdeploy_ext.verify import fresh
from mmdeploy_ext.verify.ladder import export_options, prove
from mmdeploy_ext.verify.structure import _names
from mmdeploy_ext.verify.weights import Derived, check_weights
from toy_atss import PICTURE, export_toy, load_toy

WEIGHT = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
CHANGED = WEIGHT + np.float32(2e-3)


def graph_with(nodes, initializers=(), sparse=()):
    """Return a model that adds its constant 'c' to what the right weight 'w' gives."""
    nodes = [*nodes, helper.make_node('Mul', ['x', 'w'], ['h']), helper.make_node('Add', ['h', 'c'], ['y'])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in 'xy']
    kept = [numpy_helper.from_array(WEIGHT, 'w'), *initializers]
    graph = helper.make_graph(nodes, 'g', values[:1], values[1:], kept, sparse_initializer=list(sparse))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 21)])


def in_a_branch(array):
    tensor = numpy_helper.from_array(array, 'inner')
    inner = helper.make_node('Identity', ['inner'], ['z'])
    out = helper.make_tensor_value_info('z', TensorProto.FLOAT, array.shape)
    body = helper.make_graph([inner], 'body', [], [out], [tensor])
    yes = numpy_helper.from_array(np.array(True), 'yes')
    return graph_with([helper.make_node('If', ['yes'], ['c'], then_branch=body, else_branch=body)], [yes])


def value_floats(array):
    nodes = [
        helper.make_node('Constant', [], ['flat'], value_floats=array.ravel().tolist()),
        helper.make_node('Reshape', ['flat', 'shape'], ['c']),
    ]
    return graph_with(nodes, [numpy_helper.from_array(np.array(array.shape), 'shape')])


def sparse(array):
    values = numpy_helper.from_array(array.ravel(), 'c')
    places = numpy_helper.from_array(np.arange(array.size), 'places')
    return graph_with([], sparse=[helper.make_sparse_tensor(values, places, array.shape)])


def bfloat16(array):
    tensor = helper.make_tensor('b', TensorProto.BFLOAT16, array.shape, array.ravel().tolist())
    return graph_with([helper.make_node('Cast', ['b'], ['c'], to=TensorProto.FLOAT)], [tensor])


def attribute(array):
    nodes = [
        helper.make_node('Scaler', ['x'], ['c'], offset=array.ravel().tolist(), domain='ai.onnx.ml', name='s')
    ]
    return graph_with(nodes)


def words(array):
    tensor = helper.make_tensor(
        't', TensorProto.STRING, array.shape, [b'%f' % value for value in array.ravel()]
    )
    return graph_with([helper.make_node('Cast', ['t'], ['c'], to=TensorProto.FLOAT)], [tensor])


@pytest.mark.parametrize('form', [in_a_branch, value_floats, sparse, bfloat16, attribute, words])
def test_a_constant_is_found_in_every_form_that_onnx_has_for_it(form):
    check = check_weights(form(CHANGED), dict(w=WEIGHT), Derived())
    assert not check.passed and 'not in the checkpoint' in check.detail


@pytest.mark.parametrize('form', [in_a_branch, value_floats])
def test_a_weight_may_be_in_any_of_the_forms(form):
    check = check_weights(form(WEIGHT), dict(w=WEIGHT), Derived())
    assert check.passed, check.detail


@pytest.mark.parametrize('operator', ['DequantizeLinear', 'QuantizeLinear'])
def test_weights_that_are_stored_quantised_are_named_as_such(operator):
    values = [numpy_helper.from_array(np.full(3, 0.01, np.float32), 'scale')]
    if operator == 'DequantizeLinear':
        values.append(numpy_helper.from_array((CHANGED * 20).astype(np.int8), 'kernel'))
        nodes = [helper.make_node(operator, ['kernel', 'scale'], ['c'], axis=1)]
    else:
        values.append(numpy_helper.from_array(WEIGHT, 'kernel'))
        zero = numpy_helper.from_array(np.zeros(3, np.int8), 'zero')
        nodes = [
            helper.make_node(operator, ['kernel', 'scale', 'zero'], ['q'], axis=1),
            helper.make_node('DequantizeLinear', ['q', 'scale'], ['c'], axis=1),
        ]
        values.append(zero)
    check = check_weights(graph_with(nodes, values), dict(w=WEIGHT), Derived())
    assert not check.passed and 'stored quantised (kernel)' in check.detail


def test_many_whole_numbers_are_no_way_around():
    numbers = (np.random.default_rng(1).normal(size=(128, 3)) * 100).astype(np.int32)
    cast = helper.make_node('Cast', ['numbers'], ['c'], to=TensorProto.FLOAT)
    model = graph_with([cast], [numpy_helper.from_array(numbers, 'numbers')])
    check = check_weights(model, dict(w=WEIGHT), Derived())
    assert not check.passed and 'numbers (128, 3)' in check.detail
    assert check_weights(model, dict(w=WEIGHT), Derived(fresh=lambda: [model])).passed


def test_a_weight_that_a_fresh_export_has_may_not_be_missing():
    whole, other = dict(w=WEIGHT, v=CHANGED), numpy_helper.from_array(CHANGED, 'c')
    without = graph_with([helper.make_node('Constant', [], ['c'], value_float=0.5)])
    unused = graph_with([helper.make_node('Constant', [], ['c'], value_float=0.5)])
    unused.graph.initializer.append(numpy_helper.from_array(CHANGED, 'v'))
    honest = graph_with([], [other])
    for model in (without, unused):
        check = check_weights(model, whole, Derived(fresh=lambda: [honest]))
        assert not check.passed and check.detail == '1 of the checkpoint are not in the file: v'
    assert check_weights(honest, whole, Derived()).passed
    assert check_weights(without, whole, Derived(fresh=lambda: [without])).passed  # this form does not use it


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    deployment = load_toy()
    return deployment, export_toy(deployment, tmp_path_factory.mktemp('weights') / 'full.onnx')


def renamed(path, part, name, shift):
    """Return the file with one parameter shifted and under another name."""
    model = onnx.load(path)
    (tensor,) = (value for value in model.graph.initializer if value.name.endswith(part))
    for node in model.graph.node:
        node.input[:] = [name if value == tensor.name else value for value in node.input]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(shift), name))
    return model


def test_the_name_of_a_computed_constant_is_no_licence(toy, tmp_path):
    deployment, path = toy
    model = renamed(path, 'bbox_head.atss_cls.bias', 'postprocess/evil', 2e-5)
    onnx.save(model, tmp_path / 'evil.onnx')
    verdict, _ = prove(deployment, str(tmp_path / 'evil.onnx'), [('picture', read_image(PICTURE))])
    failed = [check for check in verdict.structure if not check.passed]
    assert [check.name for check in failed] == ['weights come from the checkpoint']
    assert 'nor in a fresh export: postprocess/evil' in failed[0].detail


def test_computed_constants_are_compared_by_value(toy):
    deployment, path = toy
    weights = {name: value.numpy() for name, value in fuse(deployment.model).state_dict().items()}
    derived = fresh.of_images(deployment, export_options(read_metadata(path)), read_image(PICTURE))
    model = onnx.load(path)
    node = next(
        node
        for node in model.graph.node
        if node.op_type == 'Constant'
        and node.name.startswith('postprocess/')
        and node.attribute[0].t.data_type == TensorProto.FLOAT
        and list(node.attribute[0].t.dims) == [1, 1, 4]
    )
    tensor = node.attribute[0].t
    array = numpy_helper.to_array(tensor)
    for factor, passed in ((1 + 2e-7, True), (1 + 1e-5, False)):
        tensor.CopyFrom(numpy_helper.from_array(array * np.float32(factor), tensor.name))
        check = check_weights(model, weights, derived)
        assert check.passed == passed, check.detail
        assert passed or node.name in check.detail


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        (np.zeros((1, 2), np.float32), ''),
        (np.full((1, 2), 100, np.float32), 'size has the default 100.0 float32[1, 2], expected 0'),
        (np.zeros((1, 2), np.int64), 'size has the default 0 int64[1, 2], expected 0'),
        (np.zeros((1, 3), np.float32), 'size has the default 0.0 float32[1, 3], expected 0'),
        (None, 'size has no default, expected 0'),
    ],
)
def test_defaults_of_optional_inputs_are_those_of_the_spec(value, said):
    inputs = [helper.make_tensor_value_info('size', TensorProto.FLOAT, ('B', 2))]
    outputs = [helper.make_tensor_value_info('y', TensorProto.FLOAT, ('B', 2))]
    kept = [] if value is None else [numpy_helper.from_array(value, 'size')]
    nodes = [helper.make_node('Neg', ['size'], ['y'])]
    model = helper.make_model(helper.make_graph(nodes, 'g', inputs, outputs, kept))
    y = TensorSpec('y', 'float32', ('B', 2))
    spec = GraphSpec('g', (TensorSpec('size', 'float32', ('B', 2), default=0.0),), (y,))
    check = _names(model, spec)[0]
    assert (check.passed, check.detail) == (not said, said)
    required = _names(model, GraphSpec('g', (TensorSpec('size', 'float32', ('B', 2)),), (y,)))[0]
    assert required.passed == (value is None)


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('batch', 'x', "options.batch is 'x', expected int"),
        ('batch', True, 'options.batch is True, expected int'),
        ('batch', 0, 'options.batch is 0, expected at least 1'),
        ('dynamic', 'no', "options.dynamic is 'no', expected bool"),
        ('keep_fp32', 'x', "options.keep_fp32 is 'x', expected list"),
        ('cfg_options', None, 'options.cfg_options is None, expected dict'),
    ],
)
def test_options_of_another_type_are_damaged_metadata(toy, name, value, said):
    props = {entry.key: entry.value for entry in onnx.load(toy[1]).metadata_props}
    Metadata.from_props(props)
    props[f'{PREFIX}options'] = json.dumps({**json.loads(props[f'{PREFIX}options']), name: value})
    with pytest.raises(ModelFileError, match='metadata is damaged') as raised:
        Metadata.from_props(props)
    assert said in str(raised.value)
