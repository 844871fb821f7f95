"""Level 1 beside the graph: what the spec says of inputs and their defaults."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.proving.file_checks import (
    check_inputs_used,
    check_interface,
    check_structure,
)


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
    check = check_interface(model, spec)[0]
    assert (check.passed, check.detail) == (not said, said)
    required = check_interface(model, GraphSpec('g', (TensorSpec('size', 'float32', ('B', 2)),), (y,)))[0]
    assert required.passed == (value is None)


def test_an_input_that_only_a_branch_within_a_branch_reads_reaches_an_output():
    def branch(node, name):
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        )

    def chosen(name, body):
        other = branch(helper.make_node('Neg', ['z'], [f'{name}_else']), f'{name}_else')
        return helper.make_node('If', ['c'], [name], then_branch=body, else_branch=other)

    inner = branch(helper.make_node('Neg', ['x'], ['inner']), 'inner')
    model = helper.make_model(
        helper.make_graph([chosen('y', branch(chosen('middle', inner), 'middle'))], 'g', [], [])
    )
    inputs = (TensorSpec('c', 'bool', ()), *(TensorSpec(name, 'float32', (2,)) for name in 'xz'))
    spec = GraphSpec('g', inputs, (TensorSpec('y', 'float32', (2,)),))
    assert check_inputs_used(model, spec).passed
    more = GraphSpec('g', (*inputs, TensorSpec('w', 'float32', (2,))), spec.outputs)
    assert check_inputs_used(model, more).detail == 'frozen: w'


@pytest.mark.parametrize(
    'output',
    [
        helper.make_empty_tensor_value_info('y'),
        helper.make_tensor_sequence_value_info('y', TensorProto.FLOAT, None),
        helper.make_tensor_value_info('y', 99, (1, 2)),
    ],
)
def test_an_output_without_a_dtype_differs_from_the_spec(output):
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, (1, 2))
    model = helper.make_model(helper.make_graph([helper.make_node('Neg', ['x'], ['y'])], 'g', [x], [output]))
    spec = GraphSpec('g', *((TensorSpec(name, 'float32', (1, 2)),) for name in 'xy'))
    inputs, outputs = check_interface(model, spec)
    assert inputs.passed and "got ('y', '?'," in outputs.detail


def test_the_opset_is_that_of_the_options():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in 'xy')
    graph = helper.make_graph([helper.make_node('Neg', ['x'], ['y'])], 'g', [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    spec = GraphSpec('g', *((TensorSpec(name, 'float32', (1, 2)),) for name in 'xy'))
    checks = check_structure(model, SimpleNamespace(options=dict(opset=17), spec=spec))
    failed = {check.name: check.detail for check in checks if not check.passed}
    assert failed == {'opset': 'asked for 17, written [18]'}
