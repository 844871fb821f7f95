"""What the proof is worth: mutated files, judged by level 1 and by inputs alone; faults in our own code.

Figures go to work_dirs/mutations; `python tests/mutation_table.py` writes them into docs/proof.md.
"""

import collections

import pytest

from fault_run import run_faults
from mutation_judges import CRASH, Judges
from mutation_table import keep
from mutation_toys import TOYS
from mutations import KINDS, mutants

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(5400)]
COUNT, SEED = 300, 16
EVERY = 3
"""Of the same mutants inputs alone judge every third: one that they do not catch runs all of them, twice."""
FAULT_KINDS = tuple(kind for kind in KINDS if kind != 'harmless')
NAMED_PARTS = ('sparse_libspconv',)
"""Toys whose engine reads inner names and the order of nodes: no other way to write them is the same."""
GRAPHS = [(name, index) for name, toy in TOYS.items() for index in range(len(toy.graphs))]


def title(toy, graph):
    return toy if len(TOYS[toy].graphs) == 1 else f'{toy} {TOYS[toy].graphs[graph]}'


@pytest.fixture(scope='module')
def judges(tmp_path_factory):
    """Return toy -> its judges, made once."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = Judges(TOYS[name], tmp_path_factory.mktemp(name))
        return known[name]

    return of


def mutated(judges, name, graph):
    """Yield mutants of one graph of a toy, faults and others, and the paths of the files with it."""
    import onnx

    one = judges(name)
    model = onnx.load(one.paths[graph])
    drawn = collections.Counter()
    count = share(name)
    only = tuple(KINDS) if name not in NAMED_PARTS else FAULT_KINDS
    for mutant in mutants(model, SEED, 2 * count, only):
        drawn[mutant.harmless] += 1
        if not mutant.harmless or drawn[True] <= count // 10:
            yield mutant, one.files_with(graph, mutant.model)
        if drawn[False] == count:
            return


def share(name):
    """Return how many mutants each graph of a toy gets: `COUNT` or more in all."""
    return -(-COUNT // len(TOYS[name].graphs))


def tally(found):
    """Return kind -> [how many of them, of how many] of (kind, bool)."""
    counts = collections.defaultdict(lambda: [0, 0])
    for kind, yes in found:
        counts[kind][0] += bool(yes)
        counts[kind][1] += 1
    return dict(counts)


@pytest.mark.parametrize('name', TOYS)
def test_untouched_files_are_proven(judges, name):
    one = judges(name)
    assert one.toy.prove(one.paths).passed
    assert one.level_1(one.paths) == one.inputs(one.paths) == []


@pytest.mark.parametrize(('name', 'graph'), GRAPHS)
def test_no_mutant_is_proven_by_its_graph(judges, name, graph):
    passed, same, crashes = [], [], []
    for mutant, paths in mutated(judges, name, graph):
        reasons = judges(name).level_1(paths)
        (same if mutant.harmless else passed).append((mutant, not reasons))
        crashes += [(mutant.kind, mutant.where, reason) for reason in reasons if reason.startswith(CRASH)]
    keep(title(name, graph), 'mutants', tally((mutant.kind, yes) for mutant, yes in passed))
    keep(title(name, graph), 'harmless', tally((mutant.kind, yes) for mutant, yes in same))
    proven = [(mutant.kind, mutant.where, mutant.detail) for mutant, yes in passed if yes]
    assert (len(passed), proven, crashes) == (share(name), [], [])
    other = [(mutant.where, mutant.detail) for mutant, yes in same if mutant.kind == 'harmless' and not yes]
    assert not other, 'the same graph, written in another way, is proven'


@pytest.mark.parametrize(('name', 'graph'), [pair for pair in GRAPHS if pair[0] != 'solo_decoupled'])
def test_the_share_of_mutants_that_inputs_catch(judges, name, graph):
    caught, missed = [], []
    for place, (mutant, paths) in enumerate(mutated(judges, name, graph)):
        if not mutant.harmless and place % EVERY == 0:
            reasons = judges(name).inputs(paths)
            caught.append((mutant.kind, reasons))
            if not reasons:
                missed.append((mutant.kind, mutant.where, mutant.detail))
    keep(title(name, graph), 'inputs', tally(caught))
    keep(title(name, graph), 'missed', missed)
    assert len(caught) >= share(name) // EVERY - 1


@pytest.mark.parametrize('name', TOYS)
def test_no_fault_in_our_own_code_is_proven(name):
    """The fresh export has it too, so that level 1 finds the same graph: inputs alone can tell."""
    outcomes = list(run_faults(name))
    keep(name, 'planted', [sum(outcome.proven for outcome in outcomes), len(outcomes)])
    assert [outcome for outcome in outcomes if not outcome.passed] == []
