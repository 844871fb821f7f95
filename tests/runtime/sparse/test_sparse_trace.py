"""What a traced graph says is what the module computes, and tracing leaves nothing behind."""

import numpy as np
import pytest
import torch
from spconv import pytorch as spconv
from spconv.pytorch import SparseConvTensor, SparseModule, SparseSequential, SubMConv3d
from torch import nn
from torch.nn import functional

import scn_nets
from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.runtime.sparse import engine

GRID = (9, 24, 24)


def traced(module, shape=GRID, in_channels=4, order='zyx', **settings):
    return trace(module.eval(), order=order, spatial_shape=shape, in_channels=in_channels, **settings)


def assert_computes(module, graph, *call, scale=1e-5):
    """The graph, run by the numpy engine, gives what the unpatched module gives."""
    features, coordinates = scn_nets.sweep(graph.spatial_shape, 300, graph.in_channels)
    with torch.no_grad():
        arguments = torch.from_numpy(features), torch.from_numpy(coordinates)
        if not call:
            arguments = (SparseConvTensor(*arguments, list(graph.spatial_shape), 1),)
        result = module(*arguments, *call)
    if isinstance(result, tuple):
        result = result[0]
    if isinstance(result, SparseConvTensor):
        result = result.dense().flatten(1, 2)
    expected = result.numpy()
    got = engine.run(graph, coordinates, features)
    assert expected.any()
    assert got.shape == expected.shape == graph.output_shape
    assert np.abs(got - expected).max() <= scale * np.abs(expected).max()
    return got


def randomised(module, seed=0):
    """Give norms and biases values that a mistake cannot hide behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dtype.is_floating_point and tensor.ndim == 1:
                tensor.uniform_(-1, 1, generator=generator)
    return module.eval()


class Calls(SparseModule):
    """A module whose forward is a function, with a convolution, a norm and a ReLU to use."""

    def __init__(self, function, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv = SubMConv3d(4, channels, 3, bias=False, indice_key='a')
        self.conv2 = SubMConv3d(4, channels, 3, bias=False, indice_key='a')
        self.bn = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.function(self, x)


def kinds(graph):
    return [node.op_type for node in graph.nodes]


# ---- networks


def test_bevfusion_computes_what_it_did():
    model = randomised(scn_nets.bevfusion((24, 24, 9), **scn_nets.SMALL))
    graph = traced(model, (24, 24, 9), 5, 'xyz')
    assert_computes(model, graph, 1)
    assert_computes(model, fold(graph), 1)


def test_centerpoint_computes_what_it_did():
    model = randomised(scn_nets.centerpoint(in_channels=4, widths=(4, 8, 8, 8)))
    graph = traced(model, (41, 16, 16))
    assert_computes(model, fold(graph), 1, [16, 16, 40])
    rulebooks = [node.rulebook for node in graph.convolutions()]
    assert rulebooks[:6] == ['res0'] * 5 + [None]
    assert rulebooks[-1] is None


def test_second_encoder_of_conv_modules_computes_what_it_did():
    model = randomised(scn_nets.second())
    graph = traced(model)
    assert_computes(model, fold(graph), 1)
    assert kinds(fold(graph)) == ['SparseConvolution'] * 9 + ['ScatterDense', 'Reshape']


@pytest.mark.parametrize(('kernel', 'bias'), [((1, 1, 3), True), (1, False)])
def test_plain_sequential_with_any_kernel(kernel, bias):
    torch.manual_seed(0)
    model = SparseSequential(
        SubMConv3d(4, 6, kernel, bias=bias),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        spconv.SparseConv3d(6, 8, kernel, stride=1 if kernel == 1 else 2, bias=bias),
        nn.ReLU(inplace=True),
        SubMConv3d(8, 8, 1, bias=bias),
    )
    graph = traced(randomised(model))
    assert_computes(model, graph)
    assert_computes(model, fold(graph))


# ---- what may happen between modules


# ---- nothing is left behind


# ---- what the dialect cannot express


class Unsupported(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ('function', 'said'),
    [
        (lambda x: torch.cat([x, x], 1)[:, :4], 'cat'),
        (lambda x: functional.leaky_relu(x, 0.1), 'leaky_relu'),
        (lambda x: torch.from_numpy(x.numpy() * 2), 'Unsupported'),
    ],
)
def test_what_the_dialect_cannot_express_is_refused_by_name(function, said):
    features, coordinates = scn_nets.sweep(GRID, 20, 4)
    model = SparseSequential(
        SubMConv3d(4, 4, 3, bias=False), Unsupported(function), SubMConv3d(4, 4, 3, bias=False)
    )
    with pytest.raises(ExportError, match=f'^1: .*{said}'):
        traced(model, coordinates=coordinates, features=features)


def test_adding_other_sites_is_refused():
    model = Calls(lambda self, x: self.down(x) + self.conv(x))
    model.down = spconv.SparseConv3d(4, 4, 3, stride=2, padding=1, bias=False)
    with pytest.raises(ExportError, match='add0'):  # one row each, by accident
        traced(model)
