"""The engine's contract: goldens pass, and every known failure is caught with the node's name."""

import numpy as np
import onnx
import pytest

from mmdeploy_ext.base.violations import WARNING, errors
from mmdeploy_ext.exporting.sparse.libspconv_contract import check, order_of_name
from scn_files import golden_model, golden_names, node_of, set_attribute

XYZ, INT8 = 'bevfusion.plain.xyz', 'bevfusion.int8.xyz'


def rules(violations, node=None) -> set[str]:
    return {entry.rule for entry in violations if node in (None, entry.node)}


@pytest.mark.parametrize('name', golden_names())
def test_the_reference_exporters_files_have_nothing_to_be_said_against_them(name):
    violations = check(golden_model(name), name=f'{name}.onnx')
    # 1440 cells along the first axis are more than the engine tells apart, also in NVIDIA's own files
    assert rules(violations) == ({'grid-size'} if '.xyz' in name else set())


def attribute(node, name, value, kind=''):
    return lambda model: set_attribute(node_of(model, node), name, value, kind)


def weights(model, name) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def replace_weight(name, change):
    def mutate(model):
        tensor = weights(model, name)
        changed = onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name)
        tensor.CopyFrom(changed)

    return mutate


def inputs(node, *names):
    def mutate(model):
        node_of(model, node).ClearField('input')
        node_of(model, node).input.extend(names)

    return mutate


def operator(node, name):
    return lambda model: setattr(node_of(model, node), 'op_type', name)


def first_channel(value):
    def change(array):
        array = array.copy()
        array[0] = value
        return array

    return change


FAULTS = {
    'submanifold kernel of 1x1x1': (
        XYZ,
        attribute('conv3', 'kernel_size', [1, 1, 1]),
        'conv3',
        'submanifold-kernel',
    ),
    # what the parser swallows
    'unfused batch norm': (XYZ, inputs('conv2', '2', 'spconv2.weight'), 'conv2', 'missing-bias'),
    'unknown operator': (XYZ, operator('relu3', 'LeakyRelu'), 'relu3', 'unknown-operator'),
    'fp32 weights': (XYZ, replace_weight('spconv7.weight', np.float32), 'conv7', 'initializer-type'),
    # what runs and is wrong
    'misspelt activation': (XYZ, attribute('conv3', 'activation', 'relu'), 'conv3', 'activation'),
    'groups': (XYZ, attribute('conv3', 'groups', 2), 'conv3', 'never-read'),
    'overflow to infinity': (
        XYZ,
        replace_weight('spconv3.weight', first_channel(np.inf)),
        'conv3',
        'not-finite',
    ),
    'amax missing': (INT8, attribute('conv4', 'input_dynamic_range', None), 'conv4', 'amax'),
    'bound below traced rows': (
        XYZ,
        attribute('conv5', 'output_shape', [300000, 32]),
        'conv5',
        'output-bound',
    ),
    'stride that the shapes do not follow': (
        XYZ,
        attribute('conv5', 'stride', [2, 2, 1]),
        'conv5',
        'spatial-shape',
    ),
    'xyz said to be zyx': (XYZ, attribute('scatter0', 'format', 'zyx'), 'transpose0', 'order'),
}
HARMLESS = {
    'small bound': (XYZ, attribute('conv6', 'output_bound', 100000), 'conv6', 'output-bound'),
    'a wide grid': (XYZ, lambda model: None, 'conv0', 'grid-size'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_every_known_failure_is_caught_at_its_node(fault):
    name, mutate, node, rule = FAULTS[fault]
    model = golden_model(name)
    mutate(model)
    found = [entry for entry in check(model) if entry.node == node and entry.rule == rule]
    assert errors(found)


@pytest.mark.parametrize('case', HARMLESS)
def test_what_may_be_meant_is_a_warning(case):
    name, mutate, node, rule = HARMLESS[case]
    model = golden_model(name)
    mutate(model)
    found = [entry for entry in check(model) if entry.node == node and entry.rule == rule]
    assert found and {entry.severity for entry in found} == {WARNING}


def test_the_bound_is_held_against_the_voxels_that_are_expected():
    model = golden_model(XYZ)
    assert rules(check(model, max_voxels=200000)) == {'grid-size'}
    found = check(model, max_voxels=200001)
    assert {entry.node for entry in errors(found)} == {f'conv{index}' for index in range(5)}
    assert 'conv5' in {entry.node for entry in found if entry.severity == WARNING}


@pytest.mark.parametrize(
    ('name', 'order'),
    [('lidar.backbone.xyz.onnx', 'xyz'), ('xyz/lidar.onnx', '')],
)
def test_the_name_of_a_file_says_its_order(name, order):
    assert order_of_name(name) == order
