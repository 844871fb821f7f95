"""Faults of six kinds in files of three families: each is found at its node, with and without a fresh export."""

import numpy as np
import pytest

import toy_faults
from mmdeploy_ext import deploy
from mmdeploy_ext.graph import diff
from mmdeploy_ext.preprocess import read_image
from mmdeploy_ext.sequence.family import SequenceOptions
from mmdeploy_ext.sequence.files import graph_metadata
from mmdeploy_ext.verify.first_difference import Search, subject_of

FAMILIES = tuple(toy_faults.NODES)


def _atss(folder):
    import toy_atss

    deployment = toy_atss.load_toy()
    options = deploy.ExportOptions(form='decode', height=96, width=128)
    picture = read_image(toy_atss.PICTURE)
    traced = deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)
    model, metadata = deploy.export_model(deployment, options, [traced])
    subject = subject_of(deployment, metadata, [('toy.jpg', picture)])
    return model, subject, traced.tensor[None]


def _solov2(folder):
    import toy_solo

    deployment = toy_solo.load_toy('solov2', folder)
    traced = toy_solo.prepared(deployment, 0)
    model, metadata = deploy.export_model(deployment, toy_solo.options_for(form='raw'), [traced])
    subject = subject_of(deployment, metadata, [('picture 0', toy_solo.picture(0))])
    return model, subject, traced.tensor[None]


def _streampetr(folder):
    import toy_streampetr_deploy as toy

    deployment, options = toy.deployment(), SequenceOptions()
    (graph,) = (
        graph for graph in deployment.family.graphs(deployment.model, options) if graph.name == 'pts_head_memory'
    )
    subject = subject_of(deployment, graph_metadata(deployment, options, graph))
    return subject.reexport(), subject, graph.example['ego_motion'].numpy()


MAKERS = dict(atss=_atss, solov2=_solov2, streampetr=_streampetr)


@pytest.fixture(scope='module')
def subjects(tmp_path_factory):
    """Return family -> (right export, search, traced example), each made once."""
    made = {}

    def get(family):
        if family not in made:
            model, subject, example = MAKERS[family](tmp_path_factory.mktemp(family))
            made[family] = model, Search(subject, diff.Bars()), example
        return made[family]

    return get


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('fresh', [True, False])
def test_a_right_export_is_equal(subjects, family, fresh):
    model, search, _ = subjects(family)
    found = search.compare(model, fresh)
    assert found.equal, found.differences
    assert found.compared > 250
    assert max(entry.born or 0 for entry in found.entries) < 1e-5


@pytest.mark.parametrize('fault', toy_faults.FAULTS)
@pytest.mark.parametrize('family', FAMILIES)
def test_a_planted_fault_is_found_at_its_node(subjects, family, fault):
    model, search, example = subjects(family)
    broken, node = toy_faults.plant(model, family, fault, example)
    found = search.compare(broken)
    assert not found.equal
    assert found.first.node == node
    assert found.first.exact
    assert found.first.evidence
    assert len(found.differences) == 1


@pytest.mark.parametrize('fault', toy_faults.FAULTS)
@pytest.mark.parametrize('family', FAMILIES)
def test_it_is_found_without_a_fresh_export(subjects, family, fault):
    """What is left when the exporter itself is at fault: names, values and places."""
    model, search, example = subjects(family)
    broken, node = toy_faults.plant(model, family, fault, example)
    found = search.compare(broken, fresh=False)
    assert not found.equal
    assert found.first.node == node
