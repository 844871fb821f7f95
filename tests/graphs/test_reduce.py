"""Reducing a graph to its fault: planted faults, checks that are no checks, and the folder that is left."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from mmdeploy_ext.graphs import run
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.reduce.case import Case, prepare, record
from mmdeploy_ext.graphs.reduce.checks import Differs, Engines, NotFinite
from mmdeploy_ext.graphs.reduce.folder import save_folder
from mmdeploy_ext.graphs.reduce.search import reduce
from mmdeploy_ext.graphs.run import random_feeds
from toy_chain import chain
from toy_engines import parse


def case_of(model, feeds=None):
    feeds = feeds or random_feeds(model)
    ready = prepare(model, feeds)
    return Case(ready, record(ready, feeds))


def names(reduction):
    return [node.name for node in reduction.candidate.model.graph.node]


def test_an_overflow_of_float16_among_204_nodes_is_found_at_its_node():
    found = reduce(case_of(chain(overflow=100)), NotFinite())
    assert (found.nodes_before, names(found), found.stopped) == (204, ['square'], '')
    onnx.checker.check_model(found.candidate.model, full_check=True)


def test_the_limit_of_checks_ends_the_search_with_the_smallest_part_so_far():
    found = reduce(case_of(chain(24, overflow=11)), NotFinite(), most_checks=4)
    assert found.checks == 4 and 'limit of 4' in found.stopped
    assert 1 < len(names(found)) < found.nodes_before


def test_a_changed_weight_is_found_against_the_other_model():
    model = chain(changed=120)
    own, other = case_of(model), case_of(chain())
    found = reduce(own, Differs(1e-4, other.values, own.values))
    assert names(found) == ['mm120']
    assert list(found.candidate.feeds) == ['t119']


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


def test_the_folder_shows_the_fault_alone_and_not_once_it_is_corrected(tmp_path):
    case, folder = case_of(chain(20, changed=12)), tmp_path / 'reduced'
    check = Differs(1e-4, case_of(chain(20)).values, case.values)
    found = reduce(case, check)
    expected = check.expected(found.candidate, case.values)
    save_folder(found, folder, check.facts(), expected, meaning=check.meaning, source='m.onnx')
    model = files.load(folder / 'model.onnx')
    assert [node.name for node in model.graph.node] == ['mm12']
    done = subprocess.run([sys.executable, folder / 'run.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / 'case.json').read_text())['check'] == 'differs'
    good = next(tensor for tensor in chain(20).graph.initializer if tensor.name == 'w12')
    model.graph.initializer[0].CopyFrom(good)
    onnx.save(model, folder / 'model.onnx')
    assert subprocess.run([sys.executable, folder / 'run.py'], capture_output=True).returncode == 1
