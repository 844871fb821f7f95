"""What a comparison says of small modules: what it can tell apart, and what only a fresh export tells."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper

import toy_faults
from mmdeploy_ext.contract.spec import Stage
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graph.diff import findings
from mmdeploy_ext.proving.difference.locate import Search, Subject

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


def searched(module, outputs):
    """Return a right export and a search of the module."""

    def export():
        return export_module(module, (torch.rand(5, 4),), opset=17, input_names=('x',), output_names=outputs)

    feeds = dict(x=np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32))
    subject = Subject([Stage('', module, ('x',), outputs)], feeds, export, 'seeded numbers')
    return export(), Search(subject, findings.Bars())


def set_constant(model, node, place, value):
    """Change the constant that a node reads."""
    (reader,) = (one for one in model.graph.node if one.name == node)
    (constant,) = (one for one in model.graph.node if reader.input[place] in one.output)
    tensor = constant.attribute[0].t
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))


@pytest.mark.parametrize('fresh', [True, False])
def test_a_gather_that_takes_the_neighbouring_level_is_found_with_a_fresh_export_only(fresh):
    """PyTorch has made the other level, too, so its values count as right."""
    torch.manual_seed(0)
    model, search = searched(Levels().eval(), OUTPUTS)
    assert search.compare(toy_faults.copy_of(model), fresh).equal
    set_constant(model, '/Gather', 1, 0)
    found = search.compare(model, fresh)
    assert not found.equal
    assert found.first.node == ('/Gather' if fresh else '/Sigmoid')


class Clamped(torch.nn.Module):
    """Clamps at what counts as equal, and takes the logarithm: nothing of it may be taken for `x`."""

    def forward(self, x):
        x = x.clamp(0, 1)
        return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log(), x * 2


@pytest.mark.parametrize('fresh', [True, False])
def test_a_clamp_at_the_bar_is_not_taken_for_what_it_clamps(fresh):
    """The inverse sigmoid of DETR heads, where it saturates: a right export is equal."""
    model, search = searched(Clamped().eval(), OUTPUTS)
    found = search.compare(model, fresh)
    assert found.equal, found.differences
    assert max(entry.born or 0 for entry in found.entries) < 1e-6
