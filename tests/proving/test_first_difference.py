"""Faults of seven kinds in a file, and small modules: each fault is found at its node."""

import dataclasses

import numpy as np
import pytest
import torch
from onnx import numpy_helper

import toy_atss
import toy_faults
from marking import in_suite
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_graphs
from mmdeploy_ext.graphs.diff import findings
from mmdeploy_ext.proving.difference import Compared, Search, compared_of
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.tensors import Stage


@pytest.fixture(scope='module')
def toy():
    """The right export of the ATSS toy, a search that has a fresh one, and the traced picture."""
    detector = toy_atss.load_toy()
    options = detector.family.choose(form='decode', height=128, width=160)
    picture = read_image(toy_atss.PICTURE)
    traced = detectors.prepare_fixed(detector.rule, picture, options.height, options.width)
    model, metadata = export_graphs(detector, options, [traced])[0]
    subject = compared_of(detector, metadata, [('toy.jpg', picture)])
    subject = dataclasses.replace(subject, fresh_export=lambda: toy_faults.copy_of(model))
    return model, Search(subject, findings.DiffBars()), traced.tensor[None]


@pytest.mark.parametrize('fresh', [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_a_right_export_is_equal(toy, fresh):
    model, search, _ = toy
    found = search.compare(model, fresh)
    assert found.equal, found.differences
    assert found.compared > 250
    assert max(entry.born or 0 for entry in found.entries) < 1e-5


@pytest.mark.parametrize(
    'fault', in_suite(toy_faults.NODES, 'weight', 'axis', 'frozen', 'resize', 'operator')
)
def test_a_planted_fault_is_found_at_its_node(toy, fault):
    model, search, example = toy
    broken, node = toy_faults.plant(model, fault, example)
    found = search.compare(broken)
    assert not found.equal
    assert found.first.node == node
    assert found.first.exact
    assert found.first.evidence
    assert len(found.differences) == 1


@pytest.mark.matrix
@pytest.mark.parametrize('fault', ['frozen', 'kernel'])
def test_a_fault_of_the_exporter_is_told_from_one_of_the_file(toy, fault):
    """The fresh export has the same fault, so that it cannot say what is right; PyTorch can."""
    model, search, example = toy
    broken, node = toy_faults.plant(model, fault, example)
    subject = dataclasses.replace(search.subject, fresh_export=lambda: broken)
    found = Search(subject, findings.DiffBars()).compare(broken)
    assert found.first.node == node
    assert 'a fresh export has it too' in ' '.join(found.first.evidence)
    assert not found.changes


@pytest.mark.matrix
def test_two_faults_are_two_differences(toy):
    model, search, _ = toy
    broken, first = toy_faults.plant(model, 'weight')
    broken, second = toy_faults.plant(broken, 'epsilon')
    assert [one.node for one in search.compare(broken).differences] == [first, second]
    assert search.compare(broken, fresh=False).first.node == first


# --- small modules --------------------------------------------------------------------------------------

OUTPUTS = ('y', 'z')


class Levels(torch.nn.Module):
    """Two levels in one tensor; each is picked from it by its number."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        first = self.first(x).relu()
        levels = torch.stack([first, self.second(first).relu()])
        return levels[1].sigmoid(), levels[0].tanh()


class Clamped(torch.nn.Module):
    """Clamps at what counts as equal, and takes the logarithm: nothing of it may be taken for `x`."""

    def forward(self, x):
        x = x.clamp(0, 1)
        return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log(), x * 2


def searched(module):
    """Return a right export and a search of the module."""

    def export():
        return export_module(module, (torch.rand(5, 4),), opset=17, input_names=('x',), output_names=OUTPUTS)

    feeds = dict(x=np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32))
    subject = Compared([Stage('', module, ('x',), OUTPUTS)], feeds, export, 'seeded numbers')
    return export(), Search(subject, findings.DiffBars())


@pytest.mark.parametrize('fresh', [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_a_gather_that_takes_the_neighbouring_level_is_found_with_a_fresh_export_only(fresh):
    """PyTorch has made the other level, too, so its values count as right."""
    torch.manual_seed(0)
    model, search = searched(Levels().eval())
    assert search.compare(toy_faults.copy_of(model), fresh).equal
    reader = toy_faults.node_of(model, '/Gather')
    (constant,) = (one for one in model.graph.node if reader.input[1] in one.output)
    tensor = constant.attribute[0].t
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    found = search.compare(model, fresh)
    assert not found.equal
    assert found.first.node == ('/Gather' if fresh else '/Sigmoid')


@pytest.mark.parametrize('fresh', [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_a_clamp_at_the_bar_is_not_taken_for_what_it_clamps(fresh):
    """The inverse sigmoid of DETR heads, where it saturates: a right export is equal."""
    model, search = searched(Clamped().eval())
    found = search.compare(model, fresh)
    assert found.equal, found.differences
    assert max(entry.born or 0 for entry in found.entries) < 1e-6
