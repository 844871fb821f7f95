"""The generator of faults: seeded, one fault each, every kind, in bodies and functions too."""

import collections

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from equivalence import reason_of
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.files import write_json
from mmdeploy_ext.graph.io.index import all_nodes
from mmdeploy_ext.sparse.libspconv import to_onnx
from mutation_table import HEADS, rows_of, table
from mutations import KINDS, Draws, Export, Mutant, is_valid, mutants
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


@pytest.mark.matrix
def test_the_same_seed_gives_the_same_bytes(atss, found):
    again = list(mutants(atss, 0, len(KINDS)))
    assert [mutant.model.SerializeToString() for mutant in again] == [
        mutant.model.SerializeToString() for mutant in found[: len(KINDS)]
    ]


@pytest.mark.matrix
def test_another_seed_gives_other_faults(atss, found):
    other = {(mutant.where, mutant.detail) for mutant in mutants(atss, 1, len(KINDS))}
    assert len(other & {(mutant.where, mutant.detail) for mutant in found}) < len(KINDS) / 2


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


@pytest.mark.matrix
def test_no_fault_wires_a_node_to_another_copy_of_the_same_value(atss):
    for mutant in mutants(atss, 2, 16, ('wiring',)):
        old, new = mutant.detail.split(': ', 1)[1].split(' -> ')
        constants = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in all_nodes(atss)
            if node.op_type == 'Constant' and node.attribute[0].HasField('t')
        }
        if old in constants and new in constants:
            assert not np.array_equal(constants[old], constants[new])


def test_the_table_has_a_row_for_each_family_and_empty_cells_for_what_did_not_run(tmp_path):
    write_json(tmp_path / 'solo.7.json', dict(mutants=100, proven=0, equivalent=2, judged=[]))
    for toy, proven in (('solov2', False), ('decoupled_solo', True)):
        write_json(tmp_path / f'{toy}.faults.json', [dict(proven=proven), dict(proven=False)])
    rows = rows_of(tmp_path, [7], dict(solo=('solov2', 'decoupled_solo'), yolact=('yolact',)))
    shown = table(rows, [7], HEADS['docs/proof.md'])
    assert '| `solo` | 100, 0, 2 | 4, 1 |' in shown and '| `yolact` |  |  |' in shown
    with pytest.raises(DataError, match='has no run of seed 8'):
        rows_of(tmp_path, [8], dict(solo=('solov2',)))


def draws_of(seed, count):
    """Return mutants of a folder of two small graphs and a text."""
    model = with_bodies()
    helper.set_model_props(model, {'mm2onnx.family': '"toy"', 'mm2onnx.edits': '[]'})
    content, text = model.SerializeToString(), b'a: 1\nb: [2.5, true]\n'
    draws = Draws([Export({'one.onnx': content, 'two.onnx': content, 'm.yaml': text})], seed)
    found = [draws.next() for _ in range(count)]
    return draws, [mutant for mutant in found if mutant is not None]


def test_of_a_folder_each_kind_is_drawn_at_most_ten_times_and_texts_too():
    draws, found = draws_of(3, 300)
    kinds = collections.Counter(mutant.kind for mutant in found)
    assert max(kinds.values()) == 10 and {'text', 'text_keys', 'swap'} <= set(kinds)
    assert len({mutant.digest for mutant in found}) == len(found)
    assert [mutant.digest for mutant in draws_of(3, 300)[1]] == [mutant.digest for mutant in found]
    assert draws.counts == kinds


def equivalent(change):
    """Return the reason why a changed model is equivalent to itself before."""
    model = with_bodies()
    helper.set_model_props(model, {'mm2onnx.family': '"toy"', 'mm2onnx.config': '"a.py"'})
    export = Export({'m.onnx': model.SerializeToString()})
    change(model)
    return reason_of(export, Mutant('kind', '', '', changes={'m.onnx': model.SerializeToString()}))


def renamed(model):
    model.graph.node[0].name = 'other'
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = 'inner'


def unread(model):
    model.graph.node.append(helper.make_node('Neg', ['x'], ['nobody']))


def test_a_reason_is_given_for_equivalent_models_alone():
    assert 'written in another way' in equivalent(renamed)
    assert 'reaches no output' in equivalent(unread)
    assert 'only noted' in equivalent(lambda model: setattr(model.metadata_props[1], 'value', '"b.py"'))
    assert not equivalent(lambda model: setattr(model.metadata_props[0], 'value', '"solo"'))
    assert not equivalent(lambda model: setattr(model.graph.node[0].attribute[0].g.node[0], 'op_type', 'Neg'))
    assert not equivalent(lambda model: setattr(model.functions[0].node[0], 'op_type', 'Neg'))
    assert not equivalent(lambda model: setattr(model.graph.output[0], 'name', 'z'))

