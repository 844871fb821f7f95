"""Parts of graphs: what they compute is what the whole computes there."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mmdeploy_ext.contract.comparison import is_equal, is_exact
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.output_comparison import compare_edited
from mmdeploy_ext.graph.part import drop_functions
from mmdeploy_ext.graph.passes.extract import cut, extract
from mmdeploy_ext.graph.passes.select import matching_nodes, select_nodes
from scn_files import golden_model
from toy_graphs import conv_net, model_of, random_graph, steps


def names(values):
    return [value.name for value in values]


@settings(max_examples=15, deadline=None)
@given(steps, st.integers(1, 2**12))
def test_some_nodes_compute_what_they_compute_in_the_whole(chosen, picks):
    model = random_graph(chosen)
    before = model.SerializeToString()
    index = Index(model)
    positions = [at for at in range(len(index.nodes)) if picks >> (at % 12) & 1]
    if not set(positions) - index.constant_nodes():
        with pytest.raises(UsageError, match=r'no nodes|constants alone'):
            extract(model, positions)
        return
    part = extract(model, positions)
    onnx.checker.check_model(part, full_check=True)
    assert is_exact(compare_edited(model, part))
    assert extract(part, range(len(part.graph.node))) == part
    assert len(part.graph.node) >= len(positions) and model.SerializeToString() == before


@settings(max_examples=15, deadline=None)
@given(steps, st.integers(0, 99), st.integers(0, 99))
def test_a_cut_computes_what_the_whole_computes(chosen, first, second):
    model = random_graph(chosen)
    index = Index(model)
    made = [name for name in index.tensors if index.producer(name) is not None]
    end, start = made[first % len(made)], index.tensors[second % len(index.tensors)]
    try:
        part = cut(model, [start, *(['x', 'y'] if second % 2 else [])], [end])
    except UsageError:
        return
    onnx.checker.check_model(part, full_check=True)
    assert is_exact(compare_edited(model, part))
    assert cut(part, names(part.graph.input), names(part.graph.output)) == part


def test_a_cut_keeps_what_its_outputs_need_and_nothing_else():
    part = cut(conv_net(), ['b'], ['d'])
    assert names(part.graph.node) == ['/layer/layer.0/conv/Conv', '/GlobalAveragePool']
    assert names(part.graph.initializer) == ['block.weight']
    assert str(part.graph.input[0].type.tensor_type.shape.dim).count('dim_value: 4') == 3
    assert cut(conv_net()) == conv_net()


def test_one_output_of_a_node_becomes_an_input_and_another_one_is_still_computed():
    nodes = [
        helper.make_node('Split', ['x'], ['a', 'b'], axis=0),
        helper.make_node('Add', ['a', 'b'], ['z']),
    ]
    part = cut(model_of(nodes, [('x', [4])], [('z', [2])]), ['x', 'b'], ['z'])
    onnx.checker.check_model(part, full_check=True)
    assert names(part.graph.input) == ['x', 'b'] and part.graph.node[0].output == ['a', 'b_unused']


def test_a_constant_can_become_an_input():
    part = cut(conv_net(), ['e', 'fc.weight'])
    assert names(part.graph.input) == ['e', 'fc.weight'] and names(part.graph.initializer) == ['fc.bias']
    assert is_equal(compare_edited(conv_net(), part))


BAD = {
    'an unknown input': (['bb'], None, "no tensor 'bb'"),
    'an unknown output': (None, ['score'], 'did you mean scores'),
    'a node as an input': (['/relu/Relu'], None, 'is a node, not a tensor; it writes b'),
    'an input that comes too late': (
        ['scores'],
        ['b'],
        'also need the graph inputs images, which node /stem/Conv',
    ),
    'an input that nothing needs': (['b', 'images'], ['d'], 'do not depend on --inputs images'),
    'an output that is an input': (None, ['images'], 'no node makes it'),
    'both at once': (['b'], ['b'], 'an input and an output'),
}


@pytest.mark.parametrize('case', BAD)
def test_cuts_that_cannot_be_meant_are_refused(case):
    inputs, outputs, words = BAD[case]
    with pytest.raises(UsageError, match=words):
        cut(conv_net(), inputs, outputs)


def test_a_cut_that_leaves_no_inputs_is_refused():
    nodes = [
        helper.make_node(
            'Constant', [], ['k'], value=onnx.numpy_helper.from_array(onnx.numpy_helper.np.ones(3))
        ),
        helper.make_node('Neg', ['k'], ['c']),
        helper.make_node('Cast', ['c'], ['f'], to=1),
        helper.make_node('Add', ['x', 'f'], ['z']),
    ]
    model = model_of(nodes, [('x', [3])], [('z', [3])])
    with pytest.raises(UsageError, match='constants alone: the cut would leave a graph without inputs'):
        cut(model, None, ['f'])
    with pytest.raises(UsageError, match='depend on none of the inputs x: the cut would leave'):
        cut(model, ['x'], ['f'])
    with pytest.raises(UsageError, match='constants alone'):
        extract(model, [0, 1])
    assert names(extract(model, [3]).graph.input) == ['x']


def test_patterns_choose_nodes_and_misses_come_with_similar_names():
    index = Index(conv_net())
    assert select_nodes(index, ['/layer/*', '/stem/Conv', '#1']) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"'/lyer/[*]'"):
        select_nodes(index, ['/lyer/*'])
    bracketed = conv_net()
    bracketed.graph.node[1].name = 'conv[0]'
    assert select_nodes(Index(bracketed), ['conv[0]']) == [1]
    assert matching_nodes(bracketed.graph.node, ['conv[0]']) == [1]
    with pytest.raises(UsageError, match="''"):  # a node without a name or module is no node called ''
        matching_nodes(bracketed.graph.node, [''])


def test_sparse_graphs_are_refused():
    with pytest.raises(ModelFileError, match='libspconv'):
        cut(golden_model('bevfusion.plain.xyz'), None, ['5'])


def test_functions_that_are_left_over_go():
    def double(name):
        return helper.make_function(
            'own', name, ['a'], ['b'], [helper.make_node('Add', ['a', 'a'], ['b'])], [OPSET]
        )

    nodes = [
        helper.make_node(name, [a], [b], domain='own') for name, a, b in (('F', 'x', 'p'), ('G', 'p', 'z'))
    ]
    model = model_of(nodes, [('x', [3])], [('z', [3])], functions=[double('F'), double('G')])
    model.opset_import.add(domain='own', version=1)
    part = cut(model, None, ['p'])
    assert names(part.functions) == ['F'] and is_exact(compare_edited(model, part))


def test_of_functions_with_one_name_those_of_other_overloads_go():
    call = helper.make_node('F', ['x'], ['z'], domain='own', overload='b')
    model = model_of([call], [('x', [3])], [('z', [3])])
    for overload in 'ab':
        body = [helper.make_node('Neg', ['a'], ['b'])]
        function = helper.make_function('own', 'F', ['a'], ['b'], body, [OPSET], overload=overload)
        model.functions.append(function)
    drop_functions(model)
    assert [function.overload for function in model.functions] == ['b']


def test_an_input_with_a_default_stays_if_nothing_is_cut_off_and_is_a_constant_of_a_part():
    nodes = [helper.make_node('Mul', ['x', 's'], ['p']), helper.make_node('Neg', ['p'], ['z'])]
    default = numpy_helper.from_array(np.full(1, 2, np.float32), 's')
    model = model_of(nodes, [('x', [3]), ('s', [1])], [('z', [3])], [default])
    assert cut(model) == extract(model, [0, 1]) == model
    part = cut(model, None, ['p'])
    assert names(part.graph.input) == ['x'] and names(part.graph.initializer) == ['s']


def test_types_that_onnx_cannot_infer_come_from_onnx_runtime():
    nodes = [helper.make_node('FusedMatMul', ['x', 'x'], ['p'], domain='com.microsoft', transB=1)]
    nodes.append(helper.make_node('Neg', ['p'], ['z']))
    model = model_of(nodes, [('x', [2, 3])], [('z', [2, 2])])
    model.opset_import.add(domain='com.microsoft', version=1)
    part = cut(model, ['p'])
    assert [size.dim_value for size in part.graph.input[0].type.tensor_type.shape.dim] == [2, 2]
    assert is_exact(compare_edited(model, part))


OPSET = helper.make_opsetid('', 17)
