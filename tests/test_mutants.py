"""The generator of faults: seeded, one fault each, every kind, in bodies and functions too."""

import collections

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graph.io.index import all_nodes
from mmdeploy_ext.sparse.libspconv import to_onnx
from mutation_table import HEADS, table
from mutations import KINDS, is_valid, mutants
from toy_atss import REPO
from toy_sparse_graph import graph as sparse_graph

COUNT = 2 * len(KINDS)


@pytest.fixture(scope='module')
def atss():
    return onnx.load(str(REPO / 'demo/atss_toy.onnx'))


@pytest.fixture(scope='module')
def found(atss):
    return list(mutants(atss, 0, COUNT))


def with_bodies():
    """Return a model with an If, a function and nothing in the main graph that could be swapped."""

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ['n', 3])

    branches = {
        f'{name}_branch': helper.make_graph([helper.make_node(kind, ['x'], [name])], name, [], [value(name)])
        for name, kind in (('then', 'Relu'), ('else', 'Sigmoid'))
    }
    nodes = [
        helper.make_node('If', ['test'], ['chosen'], **branches),
        helper.make_node('Curve', ['chosen'], ['y'], domain='toy'),
    ]
    opsets = [helper.make_opsetid('', 17), helper.make_opsetid('toy', 1)]
    body = [helper.make_node('Exp', ['a'], ['b'])]
    function = helper.make_function('toy', 'Curve', ['a'], ['b'], body, opsets[:1])
    test = numpy_helper.from_array(np.array(True), 'test')
    graph = helper.make_graph(nodes, 'bodies', [value('x')], [value('y')], [test])
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def test_the_same_seed_gives_the_same_bytes(atss, found):
    again = list(mutants(atss, 0, COUNT))
    assert [mutant.model.SerializeToString() for mutant in again] == [
        mutant.model.SerializeToString() for mutant in found
    ]


def test_another_seed_gives_other_faults(atss, found):
    other = {(mutant.where, mutant.detail) for mutant in mutants(atss, 1, COUNT)}
    assert len(other & {(mutant.where, mutant.detail) for mutant in found}) < COUNT / 2


def test_every_kind_is_drawn_as_often_as_the_others(found):
    assert set(collections.Counter(mutant.kind for mutant in found).values()) == {2}


def test_every_fault_is_another_file_that_onnx_takes(atss, found):
    files = {mutant.model.SerializeToString() for mutant in found} | {atss.SerializeToString()}
    assert len(files) == COUNT + 1
    assert all(is_valid(mutant.model) for mutant in found if len(mutant.changes) == 1)


def parts(model):
    """Return counts of everything that a file holds: nodes, constants, ends, opset, metadata."""
    nodes = (node.SerializeToString(deterministic=True) for node in model.graph.node)
    fields = ('initializer', 'input', 'output')
    values = (value.SerializeToString() for field in fields for value in getattr(model.graph, field))
    rest = (
        value.SerializeToString() for value in (*model.opset_import, *model.metadata_props, *model.functions)
    )
    return collections.Counter([*nodes, *values, *rest])


@pytest.mark.parametrize('kind', ['operator', 'attribute', 'value', 'ulp', 'wiring', 'metadata'])
def test_one_thing_alone_is_changed(atss, found, kind):
    before = parts(atss)
    for mutant in found:
        if mutant.kind == kind:
            after = parts(mutant.model)
            assert sum((after - before).values()) == sum((before - after).values()) == 1


def test_bodies_and_functions_get_faults():
    model = with_bodies()
    assert is_valid(model)
    swapped = {mutant.where for mutant in mutants(model, 0, 7, ('operator',))}
    assert any('Curve' in where for where in swapped)
    assert any(where.startswith(('then', 'else')) for where in swapped)


def test_the_model_itself_stays_as_it_is():
    model = with_bodies()
    before = model.SerializeToString()
    list(mutants(model, 0, 30))
    assert model.SerializeToString() == before


def test_the_libspconv_dialect_has_faults_though_onnx_refuses_it():
    model = to_onnx(sparse_graph(), {'mm2onnx.family': '"toy"'})
    assert not is_valid(model)
    found = collections.Counter(mutant.kind for mutant in mutants(model, 0, 60))
    assert {'operator', 'attribute', 'value', 'ulp', 'wiring', 'ends', 'metadata'} <= set(found)


def test_no_fault_wires_a_node_to_another_copy_of_the_same_value(atss):
    for mutant in mutants(atss, 2, 40, ('wiring',)):
        old, new = mutant.detail.split(': ', 1)[1].split(' -> ')
        constants = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in all_nodes(atss)
            if node.op_type == 'Constant' and node.attribute[0].HasField('t')
        }
        if old in constants and new in constants:
            assert not np.array_equal(constants[old], constants[new])


def test_the_table_counts_what_was_proven_and_what_inputs_caught():
    figures = dict(
        mutants={'ulp': [0, 30], 'ends': [0, 30]},
        harmless={'harmless': [30, 30]},
        inputs={'ulp': [3, 30], 'ends': [30, 30]},
        planted=[0, 25],
    )
    shown = table({'toy': figures, 'other': dict(mutants={'ulp': [1, 7]})}, HEADS['docs/proof.md'])
    assert '| `toy` | 60, 0 | 30, 30 | 33 / 60 (55 %) | 25, 0 |' in shown
    assert '| `other` | 7, 1 |  |  |  |' in shown
    assert '| `ulp` | 3 / 30 (10 %) |  |' in shown

