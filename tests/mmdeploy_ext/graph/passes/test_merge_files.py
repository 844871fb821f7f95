"""Merging graphs of any origin: the chain computes what its parts compute one after the other."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper, numpy_helper

from mmdeploy_ext.contract.comparison import is_exact
from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.output_comparison import compare_merged
from mmdeploy_ext.graph.passes.extract import cut
from mmdeploy_ext.graph.passes.merge import merge
from mmdeploy_ext.graph.passes.rename import rename
from toy_graphs import conv_net, model_of, random_graph, same, steps


@settings(max_examples=10, deadline=None)
@given(steps, steps)
def test_a_chain_of_random_graphs(first, second):
    models = [random_graph(first), random_graph(second)]
    outputs = Index(models[0]).outputs
    models[1] = rename(models[1], {name: f'{name}_2' for name in Index(models[1]).outputs})
    connections = {outputs[0]: 'y'}
    merged = merge(models, ['one', 'two'], connections=connections)
    onnx.checker.check_model(merged, full_check=True)
    assert is_exact(compare_merged(models, merged, connections))
    assert set(Index(merged).inputs) == {'x', 'y'}
    assert set(Index(merged).outputs) == {*outputs[1:], *Index(models[1]).outputs}


def test_the_halves_of_a_cut_give_the_whole():
    halves = [cut(conv_net(), None, ['b']), cut(conv_net(), ['b'])]
    merged = merge(halves, ['top', 'bottom'])
    assert is_exact(compare_merged(halves, merged, {}))
    from mmdeploy_ext.graph.feeds import random_feeds
    from mmdeploy_ext.graph.run import run

    feeds = random_feeds(conv_net())
    same(run(merged, feeds), run(conv_net(), feeds))
    assert merge(halves, ['top', 'bottom'], outputs=['b', 'scores']).graph.output[0].name == 'b'


def neg(start, end, shape=(2,), dtype=1, opset=17):
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in (start, end)]
    return model_of([helper.make_node('Neg', [start], [end])], values[:1], values[1:], opset=opset)


def test_an_input_that_two_models_have_is_fed_by_the_last_output_before_each():
    models, connections = [neg('x', 'a'), neg('p', 'b'), neg('p', 'c')], {'a': 'p', 'b': 'p'}
    merged = merge(models, ['one', 'two', 'three'], connections=connections, outputs=['c', 'c'])
    assert [list(node.input) for node in merged.graph.node] == [['x'], ['a'], ['b']]
    assert Index(merged).outputs == ['c'] and is_exact(compare_merged(models, merged, connections))


def test_an_output_that_a_later_one_replaces_everywhere_is_refused_by_the_name_of_that_one():
    models = [neg('x', 'a'), neg('y', 'b'), neg('p', 'c')]
    with pytest.raises(UsageError, match="--connect a p: 'b', which is connected to it later, feeds it"):
        merge(models, ['one', 'two', 'three'], connections={'a': 'p', 'b': 'p'})


def test_functions_that_differ_by_overload_are_two():
    models = []
    for start, end in ('xp', 'pz'):
        models.append(neg(start, end))
        for overload in 'ab':
            body = helper.make_node('Abs' if overload == 'a' else 'Neg', ['i'], ['o'])
            opsets = [helper.make_opsetid('', 17)]
            function = helper.make_function('own', 'F', ['i'], ['o'], [body], opsets, overload=overload)
            models[-1].functions.append(function)
    assert [function.overload for function in merge(models, ['one', 'two']).functions] == ['a', 'b']


def test_parts_that_do_not_fit_are_refused():
    cases = (
        ([neg('x', 'p'), neg('p', 'z', (3,))], {}, 'second takes .p. as float.3., but .* gives is float.2.'),
        ([neg('x', 'p'), neg('q', 'z', (2,), 11)], {'p': 'q'}, 'double.2.'),
        ([neg('x', 'p'), neg('x', 'z', (2,), 11)], {}, 'second takes .x. as double.2., .* takes is float'),
        ([neg('x', 'p'), neg('q', 'p')], {}, 'both give p'),
        ([neg('x', 'p'), neg('q', 'z')], {'pp': 'q'}, "'pp' is not an output; did you mean p"),
        ([neg('x', 'p'), neg('q', 'z')], {'p': 'r'}, 'no later model has an input'),
        ([neg('x', 'p'), neg('p', 'x')], {}, 'second gives x, which is an input of an earlier model'),
    )
    for models, connections, words in cases:
        with pytest.raises(UsageError, match=words):
            merge(models, ['first', 'second'], connections=connections)
    with pytest.raises(UsageError, match='--outputs zz'):
        merge([neg('x', 'p'), neg('p', 'z')], ['a', 'b'], outputs=['zz'])
    with pytest.raises(UsageError, match='different names'):
        merge([neg('x', 'p'), neg('p', 'z')], ['a', 'a'])
    with pytest.raises(ExportError, match='different opsets'):
        merge([neg('x', 'p'), neg('p', 'z', opset=18)], ['a', 'b'])


def test_domains_that_one_does_not_use_and_functions_are_kept():
    body = [helper.make_node('Add', ['a', 'a'], ['b'])]
    function = helper.make_function('own', 'F', ['a'], ['b'], body, [helper.make_opsetid('', 17)])
    second = model_of(
        [helper.make_node('F', ['p'], ['z'], domain='own')], [('p', [2])], [('z', [2])], functions=[function]
    )
    second.opset_import.add(domain='own', version=1)
    models = [neg('x', 'p'), second]
    merged = merge(models, ['a', 'b'])
    assert len(merged.functions) == 1 and is_exact(compare_merged(models, merged, {}))


def test_a_default_is_left_out_where_another_model_gives_the_tensor_and_two_are_refused():
    def with_default(model, value):
        model.graph.initializer.append(numpy_helper.from_array(np.full(2, value, np.float32), 'p'))
        return model

    merged = merge([neg('x', 'p'), with_default(neg('p', 'z'), 1)], ['first', 'second'])
    onnx.checker.check_model(merged, full_check=True)
    assert not merged.graph.initializer
    parts = [with_default(neg('p', end), value) for end, value in (('y', 1), ('z', 2))]
    with pytest.raises(ExportError, match="'p' has another default"):
        merge(parts, ['first', 'second'])
    assert len(merge([parts[0], with_default(neg('p', 'z'), 1)], ['a', 'b']).graph.initializer) == 1


def test_a_comparison_feeds_a_default_to_all_models_and_not_where_an_earlier_model_gives_the_tensor():
    default = numpy_helper.from_array(np.full(2, 3, np.float32), 'p')
    with_default, without = neg('p', 'y'), neg('p', 'z')
    with_default.graph.initializer.append(default)
    for models in ([with_default, without], [without, with_default]):
        merged = merge(models, ['first', 'second'])
        assert not Index(merged).inputs and is_exact(compare_merged(models, merged, {}))
    for start, connections in (('p', {}), ('q', {'q': 'p'})):
        models = [neg('x', start), with_default]
        merged = merge(models, ['first', 'second'], connections=connections)
        assert is_exact(compare_merged(models, merged, connections))
        broken = neg('x', 'y')  # the default in place of what the first model gives
        broken.graph.node[0].CopyFrom(helper.make_node('Mul', ['x', 'zero'], ['by_zero']))
        broken.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), 'zero'))
        broken.graph.initializer.append(numpy_helper.from_array(np.full(2, -3, np.float32), 'value'))
        broken.graph.node.append(helper.make_node('Add', ['by_zero', 'value'], ['y']))
        assert not is_exact(compare_merged(models, broken, connections))


def test_sparse_initializers_of_all_models_come_along_and_types_inside_do_not():
    models = [neg('x', 'p'), neg('p', 'z')]
    for model in models:
        node = helper.make_node('Identity', ['c'], ['unread'])
        values = numpy_helper.from_array(np.ones(1, np.float32), 'c')
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [2])
        model.graph.node.append(node)
        model.graph.sparse_initializer.append(sparse)
        model.graph.value_info.append(helper.make_tensor_value_info('unread', 1, [2]))
    merged = merge(models, ['a', 'b'])
    assert [sparse.values.name for sparse in merged.graph.sparse_initializer] == ['a/c', 'b/c']
    assert not merged.graph.value_info
    onnx.checker.check_model(merged)
