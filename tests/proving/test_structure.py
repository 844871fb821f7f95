"""Level 1 beside the graph: what the spec says of inputs and their defaults."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.proving.file_checks import check_interface, check_structure, not_compared
from mmdeploy_ext.proving.subject import Unread
from mmdeploy_ext.spec.comparison import count_rows
from mmdeploy_ext.spec.results import AS_WRITTEN
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec


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


ALONE = {
    'random': lambda graph, spec: graph.node.add(op_type='RandomNormalLike', input='x', output='z'),
    'reaches an output': lambda graph, spec: graph.node[0].input.__setitem__(0, 'w'),
    'precision': lambda graph, options: options.update(precision='fp16'),
    'shape inference': lambda graph, spec: graph.node[0].__setattr__('op_type', 'Shape'),
    'outputs equal': lambda graph, spec: graph.output[0].type.tensor_type.shape.dim[1].Clear(),
}


@pytest.mark.parametrize('check', ['', *ALONE])
def test_each_check_of_a_file_alone_finds_its_fault(check):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in 'xy')
    weight = numpy_helper.from_array(np.ones((1, 2), np.float32), 'w')
    graph = helper.make_graph([helper.make_node('Neg', ['x'], ['y'])], 'g', [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    spec = GraphSpec('g', *((TensorSpec(name, 'float32', (1, 2)),) for name in 'xy'))
    metadata = SimpleNamespace(options=dict(opset=17), spec=spec, edits=())
    ALONE.get(check, lambda *_: None)(model.graph, metadata.options)
    wrong = [one.name for one in check_structure(model, metadata) if not one.passed]
    assert any(check in name for name in wrong) == bool(check), wrong


def test_a_graph_is_left_uncompared_for_a_stated_reason_alone():
    no = dict(edited=False, written=False)
    assert not_compared('g', 3, (), **no) is None
    assert not_compared('g', 3, (), **no | dict(written=True)).left_out == AS_WRITTEN
    assert not_compared('g', 3, ('fp16',), **no | dict(edited=True)) is None
    assert not_compared('g', 3, ('quantize',), **no) is None
    assert not_compared('g', 3, ('quantize --engine openvino',), **no) is None
    assert not not_compared('g', 3, ('quantize', 'replace'), **no).passed
    assert not_compared('g', 3, ('quantize',), **no, planned=True) is None


def test_the_opset_is_that_of_the_options_unless_the_file_was_edited():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in 'xy')
    graph = helper.make_graph([helper.make_node('Neg', ['x'], ['y'])], 'g', [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    spec = GraphSpec('g', *((TensorSpec(name, 'float32', (1, 2)),) for name in 'xy'))
    metadata = SimpleNamespace(options=dict(opset=17), spec=spec, edits=())
    for edited, expected in {False: {'opset': 'requested 17, the file has [18]'}, True: {}}.items():
        checks = check_structure(model, metadata, edited)
        assert {check.name: check.detail for check in checks if not check.passed} == expected


def test_an_output_of_frames_that_no_result_depends_on_is_named():
    names = ('boxes', 'labels', 'depth')
    outputs = tuple(TensorSpec(name, 'float32', ('n',), compare='detections') for name in names)
    spec = GraphSpec('frame', (), (*outputs, TensorSpec('map', 'float32', ('n',))))

    def boxes_of(outputs):
        return outputs['boxes'][outputs['labels'] >= 0]

    unread = Unread(spec, SimpleNamespace(boxes_of=boxes_of))
    nothing = {name: np.zeros(0, np.float32) for name in names}
    unread.look(nothing, boxes_of)
    assert unread.names == list(names)
    unread.look({name: np.float32([3, 4]) for name in names}, boxes_of)
    (reason,) = unread.reasons
    assert 'depth' in reason
    assert not Unread(spec, SimpleNamespace()).reasons


def test_a_count_that_is_compared_with_bounds_is_read():
    outputs = {'candidates': np.int64([1034]), 'unread': np.int64([3])}
    unread = Unread(
        GraphSpec('g', (), tuple(TensorSpec(name, 'int64', ('n',), compare='detections') for name in outputs))
    )
    unread.look(
        outputs, lambda given: count_rows(given, {'candidates': (np.int64([1000]), np.int64([1100]))})
    )
    assert unread.names == ['unread']
