"""Two files: what differs in structure, whatever things are called, and where their numbers part."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import toy_faults
from mmdeploy_ext.graphs import output_comparison
from mmdeploy_ext.graphs.diff import files as diff
from mmdeploy_ext.graphs.diff.findings import DiffBars
from mmdeploy_ext.graphs.diff.program import Constants, Program
from mmdeploy_ext.graphs.diff.structure import align, changes
from mmdeploy_ext.graphs.passes.fp16 import to_fp16


def small(seed: int = 0) -> onnx.ModelProto:
    """Return Conv, Relu, Transpose, LayerNormalization and a sum of two branches."""
    rng = np.random.default_rng(seed)
    tensors = dict(
        w1=rng.standard_normal((4, 3, 3, 3)),
        b1=rng.standard_normal(4),
        w2=rng.standard_normal((4, 4, 1, 1)),
        scale=rng.standard_normal(6),
        shift=rng.standard_normal(6),
    )
    nodes = [
        helper.make_node('Conv', ['x', 'w1', 'b1'], ['a'], 'first', pads=[1, 1, 1, 1]),
        helper.make_node('Relu', ['a'], ['r'], 'relu'),
        helper.make_node('Conv', ['r', 'w2'], ['c'], 'second'),
        helper.make_node('Conv', ['a', 'w2'], ['d'], 'third'),
        helper.make_node('Add', ['c', 'd'], ['s'], 'sum'),
        helper.make_node('Transpose', ['s'], ['t'], 'turn', perm=[0, 1, 3, 2]),
        helper.make_node('LayerNormalization', ['t', 'scale', 'shift'], ['y'], 'norm', epsilon=1e-5),
    ]
    graph = helper.make_graph(
        nodes,
        'small',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with other names of nodes and tensors, in an order that confuses: x7 becomes x8."""
    copied = toy_faults.copy_of(model)
    kept = {value.name for value in (*copied.graph.input, *copied.graph.output)}
    names = {name: name for name in kept}
    for index, node in enumerate(copied.graph.node):
        node.name = f'node_{index + 1}'
        for field in (node.input, node.output):
            field[:] = [names.setdefault(name, f't{len(names)}') if name else '' for name in field]
    for tensor in copied.graph.initializer:
        tensor.name = names.setdefault(tensor.name, f't{len(names)}')
    copied.graph.ClearField('value_info')
    return copied


def saved(tmp_path, **models):
    """Write models and return their paths."""
    paths = []
    for name, model in models.items():
        onnx.save(model, tmp_path / f'{name}.onnx')
        paths.append(str(tmp_path / f'{name}.onnx'))
    return paths


def structure(left, right):
    """Return alignment and changes of two models."""
    constants = Constants()
    programs = Program(left, constants), Program(right, constants)
    pairs = align(*programs)
    return pairs, changes(*programs, pairs)


def test_names_do_not_count():
    pairs, found = structure(renamed(small()), small())
    assert pairs.nodes == {index: index for index in range(7)}
    assert not found


@pytest.mark.parametrize(
    ('fault', 'node', 'kind', 'text'),
    [
        ('weight', 'second', 'initializer', '1 of 16 values differ'),
        ('kernel', 'first', 'initializer', 'same values in another order'),
        ('axis', 'turn', 'attribute', 'perm'),
        ('epsilon', 'norm', 'attribute', 'epsilon'),
        ('frozen', 'first', 'wiring', 'constant'),
    ],
)
def test_a_change_is_found_in_a_file_with_other_names(tmp_path, fault, node, kind, text):
    broken = small()
    guilty = toy_faults.node_of(broken, node)
    index = list(broken.graph.node).index(guilty)
    example = np.random.default_rng(5).standard_normal((1, 3, 6, 6)).astype(np.float32)
    if fault == 'axis':
        toy_faults.set_attribute(guilty, 'perm', [0, 1, 2, 3])
    else:
        toy_faults.spoil(broken, guilty, fault, example)
    paths = saved(tmp_path, right=small(), broken=renamed(broken))
    found = diff.diff_files(*paths)
    assert not found.equal
    assert found.first.node == f'node_{index + 1}'
    assert len(found.differences) == 1
    assert [change['kind'] for change in found.changes] == [kind]
    assert text in found.first.evidence[0]


def test_the_same_file_is_equal(tmp_path):
    paths = saved(tmp_path, a=small(), b=renamed(small()))
    found = diff.diff_files(*paths)
    assert found.equal and found.compared == 7 and not found.changes


def test_a_node_more_is_a_change_of_structure_and_equal_numbers_are_equal(tmp_path):
    more = small()
    more.graph.node.insert(2, helper.make_node('Relu', ['r'], ['r2'], 'again'))
    more.graph.node[3].input[0] = 'r2'
    found = diff.diff_files(*saved(tmp_path, a=small(), b=more))
    assert found.equal
    assert 'node' in {change['kind'] for change in found.changes}


def halved(model: onnx.ModelProto, half_io: bool) -> onnx.ModelProto:
    """Return a model in float16."""
    spec = output_comparison.spec_of(model)
    return to_fp16(model, output_comparison.with_half_ends(spec) if half_io else spec)


def test_a_float16_file_is_compared_with_its_float32_one(tmp_path):
    """Rounding is no difference, whichever of the two is the reference."""
    half = halved(small(), True)
    paths = saved(tmp_path, a=small(), b=half)
    for pair in (paths, paths[::-1]):
        found = diff.diff_files(*pair)
        assert found.equal and found.first is None, found.differences
    assert diff.diff_files(*paths, rtol=1e-6).differences


def test_an_output_more_or_fewer_is_a_difference(tmp_path):
    more = small()
    more.graph.output.append(helper.make_tensor_value_info('s', TensorProto.FLOAT, [1, 4, 6, 6]))
    few, many = saved(tmp_path, few=small(), many=more)
    found, other = diff.diff_files(few, many), diff.diff_files(many, few)
    assert (found.additional, other.missing) == (['s'], ['s'])
    assert not found.equal and not other.equal
    assert [DiffBars().at(rtol) for rtol in (0.5, 1e-6)] == [DiffBars(0.5, 0.5), DiffBars(1e-6, 1e-4)]
