"""Faults of seven kinds in files of three families: each is found at its node."""

import dataclasses
import functools
import itertools

import pytest

import toy_faults
from marking import in_suite
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_graphs, make_metadata
from mmdeploy_ext.graph.diff import findings
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.difference.locate import Search, subject_of

FAMILIES = tuple(toy_faults.NODES)


def _atss(folder):
    import toy_atss

    deployment = toy_atss.load_toy()
    options = deployment.family.choose(form='decode', height=96, width=128)
    picture = read_image(toy_atss.PICTURE)
    traced = deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)
    model, metadata = export_graphs(deployment, options, [traced])[0]
    subject = subject_of(deployment, metadata, [('toy.jpg', picture)])
    return model, subject, traced.tensor[None]


def _solov2(folder):
    import toy_solo

    deployment = toy_solo.load_toy('solov2', folder)
    traced = toy_solo.prepared(deployment, 0)
    model, metadata = export_graphs(deployment, toy_solo.options_for(form='raw'), [traced])[0]
    subject = subject_of(deployment, metadata, [('picture 0', toy_solo.picture(0))])
    return model, subject, traced.tensor[None]


def _streampetr(folder):
    import toy_streampetr_deploy as toy

    deployment, options = toy.deployment(), toy.deployment().family.choose()
    (graph,) = (
        graph
        for graph in deployment.family.graphs(deployment.model, options)
        if graph.name == 'pts_head_memory'
    )
    subject = subject_of(deployment, make_metadata(deployment, options, graph))
    return subject.fresh_export(), subject, graph.example['ego_motion'].numpy()


MAKERS = dict(atss=_atss, solov2=_solov2, streampetr=_streampetr)


@pytest.fixture(scope='module')
def subjects(tmp_path_factory):
    """Return family -> (right export, search, traced example), each made once."""
    made = {}

    def get(family):
        if family not in made:
            model, subject, example = MAKERS[family](tmp_path_factory.mktemp(family))
            made[family] = model, Search(subject, findings.Bars()), example
        return made[family]

    return get


@pytest.fixture(scope='module')
def found_by(subjects):
    """Return (family, fault) -> node of the fault, and what the search finds, with a fresh export or not."""

    @functools.cache
    def find(family, fault, fresh=True):
        model, search, example = subjects(family)
        broken, node = toy_faults.plant(model, family, fault, example)
        return node, search.compare(broken, fresh)

    return find


@pytest.mark.suite('True-atss')
@pytest.mark.parametrize(
    ('fresh', 'family'),
    [
        (True, 'atss'),
        (False, 'atss'),
        (False, 'streampetr'),
        *(pytest.param(True, family, marks=pytest.mark.matrix) for family in FAMILIES if family != 'atss'),
        pytest.param(False, 'solov2', marks=pytest.mark.matrix),
    ],
)
def test_a_right_export_is_equal(subjects, family, fresh):
    model, search, _ = subjects(family)
    found = search.compare(model, fresh)
    assert found.equal, found.differences
    assert found.compared > 250
    assert max(entry.born or 0 for entry in found.entries) < 1e-5


@pytest.mark.suite(
    'atss-frozen', 'atss-weight', 'atss-resize', 'atss-operator', 'atss-epsilon',
    'atss-kernel', 'atss-axis',
)  # fmt: skip
@pytest.mark.parametrize(
    ('family', 'fault'),
    in_suite(
        itertools.product(FAMILIES, toy_faults.FAULTS),
        *(('atss', fault) for fault in toy_faults.FAULTS),
    ),
)
def test_a_planted_fault_is_found_at_its_node(found_by, family, fault):
    node, found = found_by(family, fault)
    assert not found.equal
    assert found.first.node == node
    assert found.first.exact
    assert found.first.evidence
    assert len(found.differences) == 1


@pytest.mark.matrix
@pytest.mark.parametrize('fault', ['frozen', 'epsilon', 'kernel'])
def test_a_fault_of_the_exporter_is_told_from_one_of_the_file(subjects, fault):
    """The fresh export has the same fault, so that it cannot say what is right; PyTorch can."""
    model, search, example = subjects('atss')
    broken, node = toy_faults.plant(model, 'atss', fault, example)
    subject = dataclasses.replace(search.subject, fresh_export=lambda: broken)
    again = Search(subject, findings.Bars())
    found = again.compare(broken)
    assert found.first.node == node
    assert 'a fresh export has it, too' in ' '.join(found.first.evidence)
    assert not found.changes


@pytest.mark.matrix
def test_two_faults_are_two_differences(subjects):
    model, search, example = subjects('atss')
    broken, first = toy_faults.plant(model, 'atss', 'weight', example)
    broken, second = toy_faults.plant(broken, 'atss', 'epsilon', example)
    assert [one.node for one in search.compare(broken).differences] == [first, second]
    assert search.compare(broken, fresh=False).first.node == first
