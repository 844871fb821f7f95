"""Reducing a graph to its fault: planted faults, checks that are no checks, and the folder that is left."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from mmdeploy_ext.graph import run
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.reduce.case import Case, prepare, record
from mmdeploy_ext.graph.reduce.checks import (
    Command,
    Crash,
    Differs,
    Engines,
    NotFinite,
    Reference,
)
from mmdeploy_ext.graph.reduce.folder import save_folder
from mmdeploy_ext.graph.reduce.search import reduce
from toy_chain import chain


def case_of(model, feeds=None):
    feeds = feeds or random_feeds(model)
    ready = prepare(model, feeds)
    return Case(ready, record(ready, feeds))


def names(reduction):
    return [node.name for node in reduction.candidate.model.graph.node]


def parse(body, inputs='float[2,4] x', outputs='float[2,4] y', constants='<float one = {1}>'):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    return onnx.parser.parse_model(text)


def test_an_overflow_of_float16_among_204_nodes_is_found_at_its_node():
    found = reduce(case_of(chain(overflow=100)), NotFinite())
    assert (found.nodes_before, names(found), found.stopped) == (204, ['square'], '')
    assert found.checks < 60
    onnx.checker.check_model(found.candidate.model, full_check=True)


def test_a_changed_weight_is_found_against_the_other_model():
    model = chain(changed=120)
    own, other = case_of(model), case_of(chain())
    found = reduce(own, Differs(1e-4, other.values, own.values))
    assert names(found) == ['mm120']
    assert list(found.candidate.feeds) == ['t119']


def test_an_error_is_born_in_the_one_node_that_the_reference_disagrees_on():
    """ONNX Runtime on a CPU leaves out the rounding to float16 that the reference implementation does."""
    found = reduce(case_of(chain(overflow=100)), Reference())
    assert 'square' in names(found) and len(names(found)) <= 3


def cancellation():
    """Return a model whose batch normalisation cancels what the convolution before it gives.

    ONNX Runtime folds one into the other, so the cancellation happens at another place.
    """
    body = """
      a = Relu(x) \n ["before"] b = Abs(a) \n ["conv"] c = Conv<kernel_shape = [1, 1]>(b, w, far)
      ["norm"] d = BatchNormalization(c, scale, shift, mean, var) \n ["after"] e = Tanh(d) \n y = Neg(e)
    """
    inputs = ', '.join(['float[1,2,4,4] x', 'float[2,2,1,1] w', *(f'float[2] {name}' for name in
                        ('far', 'scale', 'shift', 'mean', 'var'))])  # fmt: skip
    model = parse(body, inputs, 'float[1,2,4,4] y')
    values = dict(
        w=np.ones((2, 2, 1, 1)), far=[1e4, 1e4], scale=[1, 1], shift=[0, 0], mean=[1e4, 1e4], var=[1, 1]
    )
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    del model.graph.input[1:]
    return model


def test_what_optimisation_changes_is_reduced_to_the_nodes_that_are_fused():
    found = reduce(case_of(cancellation()), Engines(1e-5))
    assert names(found) == ['conv', 'norm']


def test_a_part_gives_what_the_whole_graph_gives_there():
    case = case_of(chain(40))
    part = case.candidate(range(7, 23))
    onnx.checker.check_model(part.model, full_check=True)
    for name, value in run.run(part.model, part.feeds).items():
        np.testing.assert_array_equal(value, case.values[name])


def test_a_mask_of_minus_infinity_is_no_fault_but_the_softmax_of_nothing_else_is():
    body = """
      a = Relu(x) \n ["never"] k = Less(a, zero) \n ["mask"] b = Where(k, a, low)
      ["soft"] c = Softmax(b) \n y = Neg(c)
    """
    model = parse(body, constants='<float low = {-inf}, float zero = {0}>')
    assert names(reduce(case_of(model), NotFinite())) == ['mask', 'soft']


def broken():
    body = """
      a = Relu(x) \n b = Neg(a) \n ["bad"] r = Reshape(b, wrong) \n c = Exp(r) \n y = Reshape(c, flat)
    """
    inputs = 'float[2,4] x, int64[2] wrong'
    return parse(body, inputs, 'float[N] y', '<int64[1] flat = {-1}>')


def test_a_command_gets_a_file_and_its_inputs_and_its_exit_status_counts():
    case = case_of(chain(12))
    command = 'test -f "$(dirname {})/inputs.npz" && grep -q max7 {}'
    found = reduce(case, Command(command))
    assert names(found) == ['max7']


def saved(tmp_path, case, check):
    found = reduce(case, check)
    target = tmp_path / 'reduced'
    expected = check.expected(found.candidate, case.values)
    save_folder(found, target, check.facts(), expected, meaning=check.meaning, source='m.onnx')
    return target


KINDS = [pytest.param(kind, marks=pytest.mark.matrix) for kind in ('nan', 'engines', 'crash')]


@pytest.mark.parametrize('kind', ['differs', *KINDS])
def test_the_folder_shows_the_fault_alone_and_not_once_it_is_corrected(tmp_path, kind):
    corrected = None
    if kind == 'nan':
        case, check = case_of(chain(20, overflow=10)), NotFinite()
    elif kind == 'differs':
        case = case_of(chain(20, changed=12))
        check, corrected = Differs(1e-4, case_of(chain(20)).values, case.values), 'w12'
    elif kind == 'engines':
        case, check = case_of(cancellation()), Engines(1e-5)
    else:
        feeds = dict(x=np.ones((2, 4), np.float32), wrong=np.array([5, -1], np.int64))
        case, check = case_of(broken(), feeds), Crash()
        assert 'b' in case.values and 'r' not in case.values
    folder = saved(tmp_path, case, check)
    left = [node.name for node in files.load(folder / 'model.onnx').graph.node]
    assert left == dict(nan=['square'], differs=['mm12'], engines=['conv', 'norm'], crash=['bad'])[kind]
    done = subprocess.run([sys.executable, folder / 'run.py'], capture_output=True, text=True)
    assert done.returncode == 0 and 'the fault is shown' in done.stdout, done.stderr
    assert json.loads((folder / 'case.json').read_text())['check'] == kind
    assert 'm.onnx' in (folder / 'README.md').read_text()
    if corrected:
        model = onnx.load(folder / 'model.onnx')
        good = next(tensor for tensor in chain(20).graph.initializer if tensor.name == corrected)
        model.graph.initializer[0].CopyFrom(good)
        onnx.save(model, folder / 'model.onnx')
        done = subprocess.run([sys.executable, folder / 'run.py'], capture_output=True, text=True)
        assert done.returncode == 1 and 'NOT shown' in done.stdout
