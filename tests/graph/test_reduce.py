"""Reducing a graph to its fault: planted faults, checks that are no checks, and the folder that is left."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph import run
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.tensors import load_tensors, save_npz
from mmdeploy_ext.graph.reduce import run as reduce_run
from mmdeploy_ext.graph.reduce.case import Case, prepare, record
from mmdeploy_ext.graph.reduce.checks import (
    Check,
    Command,
    Crash,
    Differs,
    Engines,
    NotFinite,
    Reference,
    Stopped,
    parse_check,
    run_limited,
)
from mmdeploy_ext.graph.reduce.folder import save_folder
from mmdeploy_ext.graph.reduce.run import difference, not_finite
from mmdeploy_ext.graph.reduce.search import reduce
from toy_chain import chain

WEIGHTS = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'weights'


def case_of(model, feeds=None):
    feeds = feeds or random_feeds(model)
    ready = prepare(model, feeds)
    return Case(ready, record(ready, feeds))


def names(reduction):
    return [node.name for node in reduction.candidate.model.graph.node]


def parse(body, inputs='float[2,4] x', outputs='float[2,4] y', constants='<float one = {1}>'):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    return onnx.parser.parse_model(text)


class Holds(Check):
    """The fault is that a part holds all of some nodes."""

    meaning = 'it holds the nodes'

    def __init__(self, *wanted):
        super().__init__()
        self.wanted, self.asked = set(wanted), []

    def shows(self, candidate):
        self.asked.append(candidate.positions)
        return self.wanted <= {node.name for node in candidate.model.graph.node}


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


def test_nodes_far_apart_are_found_together_and_in_the_same_way_every_time():
    case = case_of(chain(60))
    checks = [Holds('mm12', 'max31', 'act53') for _ in range(2)]
    for check in checks:
        found = reduce(case, check)
        assert names(found) == ['mm12', 'max31', 'act53']
    assert checks[0].asked == checks[1].asked


def test_no_node_of_the_result_can_be_left_out():
    case = case_of(chain(40))
    check = Holds('mm2', 'mm20')
    found = reduce(case, check)
    for position in found.candidate.positions:
        rest = set(found.candidate.positions) - {position}
        assert not check.shows(case.candidate(rest))


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


def test_branches_read_from_outside_and_constants_are_no_nodes():
    body = """
      k = Constant<value = float {2}>() \n a = Relu(x) \n ["bad"] b = Sqrt(m)
      ["pick"] y = If(c) <then_branch = t () => (float[2,4] p) { p = Mul(b, k) },
                          else_branch = e () => (float[2,4] q) { q = Mul(a, k) }>
    """.replace('["bad"]', 'n = Neg(a) \n m = Sub(n, k) \n ["bad"]')
    model = parse(body, 'float[2,4] x, bool c')
    feeds = dict(x=np.ones((2, 4), np.float32), c=np.array(True))
    case = case_of(model, feeds)
    assert len(case.everything) == 5
    assert names(reduce(case, NotFinite())) == ['bad']


def test_sequences_inside_are_no_ends_of_parts():
    body = """
      s = SplitToSequence<axis = 0, keepdims = 0>(x) \n ["pick"] a = SequenceAt(s, one) \n n = Neg(a)
      ["bad"] r = Sqrt(n) \n y = Exp(r)
    """
    model = parse(body, outputs='float[4] y', constants='<int64 one = {1}>')
    feeds = dict(x=np.ones((2, 4), np.float32))
    assert names(reduce(case_of(model, feeds), NotFinite())) == ['bad']
    found = reduce(case_of(model, feeds), Holds('pick'))
    assert [node.op_type for node in found.candidate.model.graph.node] == ['SplitToSequence', 'SequenceAt']


def broken():
    body = """
      a = Relu(x) \n b = Neg(a) \n ["bad"] r = Reshape(b, wrong) \n c = Exp(r) \n y = Reshape(c, flat)
    """
    inputs = 'float[2,4] x, int64[2] wrong'
    return parse(body, inputs, 'float[N] y', '<int64[1] flat = {-1}>')


@pytest.mark.parametrize(
    ('check', 'message'),
    [
        (NotFinite(), 'does not show it'),
        (Engines(), 'does not show it'),
        (Crash(), 'does not show it'),
        (Command('false'), 'says no to the whole model: it exited with 1'),
        (Command('echo why; exit 3;'), "exited with 3 and said 'why'"),
        (Command('no_such_command_here'), 'the shell cannot run it'),
        (Command('sleep 60 &&', 0.2), 'did not end within 0.2 s'),
    ],
)
def test_a_check_that_is_none_is_refused_before_the_search(check, message):
    case = case_of(chain(12))
    with pytest.raises(UsageError, match=message):
        reduce(case, check)


def test_a_check_that_changes_its_mind_is_refused():
    class Moody(Holds):
        def shows(self, candidate):
            return super().shows(candidate) and len(self.asked) < 5

    with pytest.raises(UsageError, match='deterministic'):
        reduce(case_of(chain(12)), Moody())


def test_the_number_of_checks_is_bounded_and_the_smallest_part_so_far_is_given():
    check = Holds('mm12', 'max31')
    found = reduce(case_of(chain(60)), check, most_checks=6)
    assert found.stopped == 'the limit of 6 checks was reached' and found.checks == 6
    assert 2 < len(names(found)) < 60 and check.shows(found.candidate)


class Impatient(Command):
    """Waits for the whole model, and hardly for the candidates after it."""

    def check_whole(self, whole):
        done = super().check_whole(whole)
        self.timeout_s = 0.2
        return done


def test_a_command_that_hangs_on_candidates_is_stopped(tmp_path):
    script = tmp_path / 'check.sh'
    script.write_text('if [ -e "$0.once" ]; then sleep 60; fi\ntouch "$0.once"\n')
    found = reduce(case_of(chain(12)), Impatient(f'sh {script}', 60))
    assert 'did not end within 0.2 s 3 times' in found.stopped
    assert len(names(found)) == 12


def test_a_check_that_stops_at_the_last_time_leaves_the_part_so_far():
    class Tired(Holds):
        def shows(self, candidate):
            if candidate.positions in self.asked:
                raise Stopped('enough')
            return super().shows(candidate)

    found = reduce(case_of(chain(12)), Tired('mm4'))
    assert found.stopped == 'enough' and names(found) == ['mm4']


def test_all_that_a_command_started_is_ended_with_it(tmp_path):
    file = tmp_path / 'pid'
    for seconds in (0.3, 3, 30):
        status, _ = run_limited(f'sleep 300 & echo $! > {file}; wait', seconds)
        assert status is None
        if file.exists():
            break
    process = Path(f'/proc/{file.read_text().strip()}/stat')
    deadline = time.monotonic() + 30  # a killed process may still have to be scheduled once to end
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(process)


def _runs(process):
    try:
        return process.read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_death_by_signal_is_told_from_an_exit():
    assert run_limited('kill -SEGV $$', 30)[0] == -11
    assert run_limited('echo last words; exit 7', 30) == (7, 'last words\n')


def test_a_command_gets_a_file_and_its_inputs_and_its_exit_status_counts():
    case = case_of(chain(12))
    command = 'test -f "$(dirname {})/inputs.npz" && grep -q max7 {}'
    found = reduce(case, Command(command))
    assert names(found) == ['max7']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is empty'),
        ('differs', 'differs OTHER.onnx'),
        ('nan x', "'nan'"),
        ('engine', 'did you mean engines'),
    ],
)
def test_a_check_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_check(text)


def saved(tmp_path, case, check):
    found = reduce(case, check)
    target = tmp_path / 'reduced'
    expected = check.expected(found.candidate, case.values)
    save_folder(found, target, check.facts(), expected, meaning=check.meaning, source='m.onnx')
    return target


@pytest.mark.parametrize('kind', ['nan', 'differs', 'engines', 'crash'])
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


def test_the_script_shows_that_the_optimisations_refuse_a_model(tmp_path, monkeypatch):
    def compute(source, feeds, optimized):
        if optimized or source in refused:
            raise RuntimeError('not implemented')
        return {}

    refused: list[str] = []
    monkeypatch.setattr(reduce_run, 'compute', compute)
    for name in ('inputs', 'expected'):
        save_npz(tmp_path / f'{name}.npz', {})
    case = dict(check='engines', outputs=[], tolerance=0.0)
    assert reduce_run.judge(tmp_path, case)
    refused.append(str(tmp_path / 'model.onnx'))
    with pytest.raises(RuntimeError, match='not implemented'):
        reduce_run.judge(tmp_path, case)


def test_tensors_of_any_name_are_stored(tmp_path):
    arrays = {'file': np.arange(3), '/a/b:0': np.float32(1), 'text': np.array(['a', 'bc'], object)}
    save_npz(tmp_path / 'inputs.npz', arrays)
    found = load_tensors(tmp_path / 'inputs.npz')
    assert list(found) == list(arrays)
    assert found['text'].tolist() == ['a', 'bc'] and found['/a/b:0'] == 1


def test_differences_are_never_missed():
    one = dict(y=np.ones(3))
    assert difference(one, one) == 0
    assert difference(dict(y=np.array([1, 1, 1.5])), one) == 0.5
    for other in (np.ones(4), np.array([1, 1, np.nan]), np.array([1, np.inf, 1])):
        assert difference(dict(y=other), one) == float('inf')
    assert difference(dict(y=np.ones(3)), dict(y=np.zeros(3))) == float('inf')
    assert difference(dict(y=np.array(['a'])), dict(y=np.array(['b']))) == float('inf')
    assert difference(dict(y=np.array([2**62 + 1])), dict(y=np.array([2**62]))) > 0
    assert not_finite(dict(y=np.array([1, -np.inf], np.float16))) == 'inf'
    assert not_finite(dict(y=np.array([3]))) == ''


@pytest.mark.parametrize('values', [[1, 2, 4.5], [1, np.nan, 4], [np.inf, 2, 4], [-np.inf, 2, 4], [0, 0, 0]])
@pytest.mark.parametrize('reference', [[1, 2, 4], [np.inf, 2, 4], [0, 0, 0]])
def test_the_difference_of_the_script_is_that_of_the_package(values, reference):
    """A reduced folder runs without the package, so that its script has a difference of its own."""
    array, expected = np.array(values, np.float32), np.array(reference, np.float32)
    assert difference(dict(y=array), dict(y=expected)) == ArrayDistance(array, expected).max_rel


def test_a_file_that_others_wrote_is_reduced():
    path = WEIGHTS / 'yunet_mmdet' / 'yunet_n_dynamic.onnx'
    if not path.is_file():
        pytest.skip('skipped: ../shared/data/weights/yunet_mmdet not found')
    model = files.load(path)
    case = case_of(model, random_feeds(model, sizes=dict()))
    wanted = [case.index.nodes[place].name for place in (40, 90)]
    assert names(reduce(case, Holds(*wanted))) == wanted
