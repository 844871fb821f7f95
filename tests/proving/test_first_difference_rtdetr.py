"""Faults in a file of RT-DETR, whose graph has top-k, grid samples and products of flattened tokens."""

import pytest

import toy_faults
import toy_rtdetr
from mmdeploy_ext.core import cli
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_graphs
from mmdeploy_ext.graph.diff import findings
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.difference.locate import Search, subject_of
from mmdeploy_ext.proving.difference.report import print_comparison

CONFIG = toy_rtdetr.CONFIG
WEIGHT = 'network/decoder/layers.1/linear1/MatMul'
FAULTS = {
    WEIGHT: None,
    'network/decoder/layers.2/norm2/LayerNormalization': ('epsilon', 1e-3),
    'network/decoder/layers.0/cross_attn/GridSample_1': ('align_corners', 1),
    'network/decoder/TopK': ('largest', 0),
}


@pytest.fixture(scope='module')
def made():
    """Return the export of the trained toy, and its search."""
    deployment = deploy.load(CONFIG, str(toy_rtdetr.REPO / 'demo/checkpoints/rtdetr_toy.pth'))
    options = deployment.family.choose(form='full', height=96, width=128)
    picture = read_image(toy_rtdetr.PICTURE)
    traced = deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)
    model, metadata = export_graphs(deployment, options, [traced])[0]
    return model, Search(subject_of(deployment, metadata, [('toy.jpg', picture)]), findings.Bars())


def plant(model, name):
    """Return a copy of a model with a fault at one node."""
    broken = toy_faults.copy_of(model)
    node = toy_faults.node_of(broken, name)
    if FAULTS[name] is None:
        weight = toy_faults.constant(broken, node.input[1]).copy()
        weight.flat[7] += 0.05
        toy_faults.give(broken, node, 1, weight)
    else:
        toy_faults.set_attribute(node, *FAULTS[name])
    return broken


@pytest.mark.matrix
@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[] if name == WEIGHT else [pytest.mark.matrix]) for name in FAULTS],
)
def test_a_planted_fault_is_found_at_its_node_without_a_fresh_export(made, name):
    model, search = made
    found = search.compare(plant(model, name), fresh=False)
    assert not found.equal
    assert {one.node for one in found.differences} == {name}


@pytest.mark.matrix
def test_both_outputs_of_a_topk_are_one_node_at_fault(made, capsys):
    model, search = made
    found = search.compare(plant(model, 'network/decoder/TopK'))
    assert {one.node for one in found.differences} == {'network/decoder/TopK'}
    assert found.first.evidence == ['TopK largest: 0, reference 1']
    print_comparison(found, cli.stdout())
    assert ' more: ' not in capsys.readouterr().out


def test_flattened_tokens_of_pytorch_are_compared_with_those_of_the_graph(made):
    """PyTorch's product is 2-D there, (tokens, channels), and the graph's 3-D: no difference of shape."""
    model, search = made
    found = search.compare(plant(model, WEIGHT), fresh=False)
    assert not any('shape' in line for line in found.first.evidence)
    assert 0 < found.first.born < 1
