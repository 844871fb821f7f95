"""A bfloat16 or INT8 file is compared node by node with what its plan makes of a fresh float32 export."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.bench.precision.plan import Planner
from mmdeploy_ext.exporting.int8.dense import (
    QUANTISE,
    RANGES,
    DenseGraph,
    DenseQuantiser,
    finish_model,
    record,
    store_ranges,
)
from mmdeploy_ext.exporting.precision_plan import (
    KeptResults,
    Plan,
    has_ranges,
    plan_of,
    with_plan,
    with_plan_of,
)
from mmdeploy_ext.graphs.io.files import SCOPES, module_of
from mmdeploy_ext.graphs.signature import differences
from mmdeploy_ext.proving.file_checks import compare_with_fresh_export
from mmdeploy_ext.proving.proof import check_graph
from mmdeploy_ext.spec.metadata import BF16

ALL = KeptResults(1, 1)
LAYERS = ['a', 'b']


def export(opset=17, factor=1.0):
    """Two products, and a product that a plan keeps in float32."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node('MatMul', ['x', 'wa'], ['ta'], '/a/MatMul'),
        helper.make_node('Relu', ['ta'], ['ra'], '/relu/Relu'),
        helper.make_node('MatMul', ['ra', 'wb'], ['tb'], '/b/MatMul'),
        helper.make_node('MatMul', ['tb', 'wc'], ['y'], '/c/MatMul'),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 64])] for name in 'xy']
    weights = [rng.normal(size=(64, 64)).astype(np.float32) * np.float32(factor) for _ in 'abc']
    tensors = [numpy_helper.from_array(array, f'w{name}') for array, name in zip(weights, 'abc', strict=True)]
    graph = helper.make_graph(nodes, 'g', *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)


def written(*precisions, reduce_range=False, moved=False):
    """A file with a plan, and `edits` of its metadata; `moved`: product b is in float32, against it."""
    model, quantiser = export(22 if 'bf16' in precisions else 17), None
    layers = LAYERS if 'int8' in precisions else []
    if layers:
        quantiser = DenseQuantiser(DenseGraph(model, 'm'), reduce_range, outputs=False)
        quantiser.calibrate([dict(x=np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32))])
    planner = Planner(dict(m=model), lambda models: ALL, {}, quantiser=quantiser)
    lower = next((name for name in precisions if name != 'int8'), 'fp32')
    plan = Plan(precisions, 0.999, ALL, ALL, ALL, ALL, [], ['c'], layers, {}, {})
    patterns, layers = (['b', 'c'], layers[:1]) if moved else (plan.patterns, layers)
    file = with_plan(planner.written(lower, patterns, layers)['m'], plan)
    if quantiser:
        store_ranges(file, quantiser)
    return file, [edit for name, edit in dict(int8=QUANTISE, bf16=BF16).items() if name in precisions]


@pytest.mark.parametrize(
    ('precisions', 'settings'),
    [(['bf16'], {}), (['int8'], {}), (['int8'], dict(reduce_range=True)), (['int8', 'fp16'], {})],
)
def test_a_planned_file_equals_a_fresh_export_until_a_node_is_moved_out_of_the_plan(precisions, settings):
    file, edits = written(*precisions, **settings)
    plan = plan_of(file, edits)
    assert differences(file, with_plan_of(file, plan, export())) == []
    assert differences(file, with_plan_of(file, plan, export(factor=1.01))), 'other weights'
    file, _ = written(*precisions, **settings, moved=True)
    assert '/b/MatMul' in str(differences(file, with_plan_of(file, plan, export())))


def test_a_code_that_another_rounding_moves_is_no_difference_and_many_are():
    file, edits = written('int8')
    tensor = next(one for one in file.graph.initializer if one.name == 'wb/rounded/codes')
    codes = numpy_helper.to_array(tensor).copy()
    for rows, equal in {1: True, 8: False}.items():
        codes[:rows, 0] -= np.sign(codes[:rows, 0])
        tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
        found = differences(file, with_plan_of(file, plan_of(file, edits), export()))
        assert (not found) is equal


def test_only_a_plan_explains_edits():
    file, edits = written('int8')
    assert plan_of(file, [*edits, 'replace']) is None
    assert plan_of(export(), edits) is None
    onnx.checker.check_model(file, full_check=True)


@pytest.mark.parametrize('text', ['[', '[]', '{}', '3', '[' * 50_000, '{"precisions": "int8"}'])
def test_a_malformed_plan_is_refused_by_its_key(text):
    file, edits = written('int8')
    next(entry for entry in file.metadata_props if entry.key == 'precision.plan').value = text
    with pytest.raises(ModelFileError, match=r'precision\.plan'):
        plan_of(file, edits)
    given = SimpleNamespace(path='f.onnx', model=file, edits=edits)
    with pytest.raises(ModelFileError, match=r'^f\.onnx: precision\.plan'):
        check_graph(SimpleNamespace(claims=None), given, None)


def quantised():
    """A file of `quantize`, with layer b in float."""
    quantiser = DenseQuantiser(DenseGraph(export()))
    quantiser.calibrate([dict(x=np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32))])
    facts = dict(weights='int8 per channel', float_layers=['b'])
    model = finish_model(quantiser.graph, quantiser.network(['a', 'c']), facts)
    record(model, quantiser)
    return model


@pytest.mark.parametrize('text', ['3', 'None', '{[]}', '-' * 50_000 + '1', '[[1]]', "['b'"])
def test_layers_that_cannot_be_read_are_refused_by_their_key(text):
    model = quantised()
    next(entry for entry in model.metadata_props if entry.key == 'int8.float_layers').value = text
    found = compare_with_fresh_export(model, export, edits=[QUANTISE])
    assert not found.passed and 'int8.* in its metadata' in found.error
    node = helper.make_node('Relu', ['x'], ['y'], '/a/Relu')
    node.metadata_props.add(key=SCOPES, value=text)
    assert module_of(node) == ('', 'metadata')


def planned():
    return written('int8')[0]


def with_scale(factor):
    def change(model):
        node = next(node for node in model.graph.node if node.op_type == 'QuantizeLinear')
        tensor = next(one for one in model.graph.initializer if one.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))

    return change


def with_other_codes(model):
    tensor = next(one for one in model.graph.initializer if len(one.dims) == 2 and one.data_type == 3)
    codes = numpy_helper.to_array(tensor) // 2
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))


def with_a_float_layer(model):
    """The first product reads x, which the file rounds."""
    node = next(node for node in model.graph.node if node.name == '/a/MatMul')
    node.input[0] = 'x'


def unreadable(model):
    entry = next(entry for entry in model.metadata_props if entry.key == RANGES)
    entry.value = '[1'


WRONG = {
    'scale x 4': with_scale(np.float32(4)),
    'scale x 0.5': with_scale(np.float32(0.5)),
    'scale x 0.25': with_scale(np.float32(0.25)),
    'codes': with_other_codes,
    'float': with_a_float_layer,
    'metadata': unreadable,
}


@pytest.mark.parametrize('make', [quantised, planned])
@pytest.mark.parametrize('fault', ['', *WRONG])
def test_scales_codes_and_layers_of_an_int8_file_are_those_of_its_calibration(make, fault):
    model = make()
    WRONG.get(fault, lambda _: None)(model)
    found = compare_with_fresh_export(model, export, edits=[QUANTISE])
    assert found.passed == (not fault)
    if fault and fault != 'metadata':
        assert found.differences[0].where


def test_without_stored_ranges_the_file_gives_them():
    model = quantised()
    for entry in [entry for entry in model.metadata_props if entry.key == RANGES]:
        model.metadata_props.remove(entry)
    assert not has_ranges(model) and compare_with_fresh_export(model, export, edits=[QUANTISE]).passed
    with_other_codes(model)
    assert not compare_with_fresh_export(model, export, edits=[QUANTISE]).passed
