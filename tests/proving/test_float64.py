"""PyTorch in float64: all of it, whatever dtype the code asks for, and nothing is left behind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.float64 import WIDENED, in_float64
from mmdeploy_ext.spec.comparison import compare_named


class Careless(nn.Module):
    """Asks for float32 in many ways, and writes into tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.anchors = torch.rand(4)

    def forward(self, x):
        x = self.norm(self.linear(torch.from_numpy(x).float())) + self.anchors
        x = x.to(torch.float32) * torch.arange(4, dtype=torch.float32) + x.new_tensor([1 / 3])
        filled = torch.zeros(2, 4, dtype=torch.float32)
        filled[:, 1:] = x[:, 1:]
        filled += torch.linspace(0, 1, 4)
        return filled.mul_(1 / 3).type(torch.float32)


def test_code_that_asks_for_float32_runs_in_float64_and_leaves_nothing_behind():
    module, x = Careless().eval(), np.random.default_rng(0).random((2, 4), np.float32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    exact = module.state_dict()['linear.weight'].double() @ torch.from_numpy(x).double().T
    with in_float64(module):
        got = module(x)
        assert module.linear(torch.from_numpy(x)).dtype == torch.float64
        assert torch.allclose(module.linear(torch.from_numpy(x)) - module.linear.bias, exact.T, 1e-14, 1e-14)
    assert got.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        reference = module(x)
    assert reference.dtype == torch.float32
    assert 0 < (got - reference.double()).abs().max() < 1e-6


def test_the_distance_is_0_of_another_shape_and_unknown_where_the_code_fails():
    reference = dict(a=np.float32([1, 2, np.inf]), b=np.float32([[1]]), c=np.int64([4]))
    results = dict(a=np.array([1.5, 2, np.inf]), b=np.array([1.0, 2.0]), c=np.array([4]))
    found = rounding_of(None, reference, lambda: results)(1)
    assert {name: array.tolist() for name, array in found.items()} == dict(a=[0.5, 0, 0], b=[[0]], c=[0])

    def refuses():
        assert torch.ones(1, dtype=torch.float32).dtype == torch.float32
        return results

    assert rounding_of(None, reference, refuses)(1) == {}
    with pytest.raises(AssertionError), in_float64(None):
        refuses()
    assert torch.get_default_dtype() == torch.float32


class Scores(nn.Module):
    """Column 1 of `raw` is small beside its terms; `scores` are roots of small Sigmoids."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(5)
        self.linear, self.x = nn.Linear(64, 3), torch.from_numpy(rng.normal(size=(1, 64)).astype(np.float32))
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(rng.normal(size=(3, 64)) * 8))
            self.linear.bias.zero_()
            self.linear.bias[1] = 0.02 - self.linear(self.x)[0, 1]

    def forward(self):
        raw = self.linear(self.x)
        return dict(raw=raw, scores=(raw.sin() / 4 - 10).sigmoid().sqrt())


def in_another_way(module):
    """Results in float32: terms added one after another, and Sigmoid as a half and a rest."""
    weight, bias = (parameter.detach().numpy() for parameter in module.linear.parameters())
    raw = np.cumsum(weight * module.x.numpy(), axis=1, dtype=np.float32)[:, -1] + bias
    half = np.float32(0.5)
    sigmoid = half + half * np.tanh(half * (np.sin(raw) / np.float32(4) - np.float32(10)))
    return dict(raw=raw[None], scores=np.sqrt(sigmoid)[None])


def test_a_distance_that_is_small_by_chance_refuses_no_right_result_and_allows_no_wrong_one():
    module = Scores()

    def run():
        return {name: tensor.detach().numpy() for name, tensor in module().items()}

    with in_float64(module):
        reference = {name: array.astype(np.float32) for name, array in run().items()}
    rounding = rounding_of(module, reference, run)

    def compared(candidate, draws):
        rows = compare_named(reference, candidate, 1e-4, rounding=lambda most: rounding(min(most, draws)))
        return {row.tensor: row.passed for row in rows}

    right = in_another_way(module)
    assert not compared(right, 0)['scores']  # raw's distance is small by chance, and not for every rounding
    assert compared(right, 3) == dict(raw=True, scores=True)
    for name in reference:
        wrong = {**right, name: right[name] * np.float32([1, 1.01, 1])}
        assert compared(wrong, 3) == {**dict(raw=True, scores=True), name: False}


@pytest.mark.parametrize('rows', [0, 2])
def test_draws_are_known_of_a_layer_with_an_empty_weight(rows):
    def run():
        x = torch.linspace(0, 1, 4, dtype=torch.float32)
        return dict(own=(x / 3).numpy(), sums=nn.functional.linear(x, torch.ones(rows, 4)).numpy())

    with in_float64(None):
        rounding = rounding_of(None, run(), run)
    assert rounding(0)['own'].max() == 0 < rounding(1)['own'].max()


SUMS = dict(
    conv_transpose=lambda x, w: functional.conv_transpose1d(x[..., None], w.T[..., None])[..., 0],
    stride=lambda x, w: functional.conv_transpose1d(x[..., None], w.T[..., None].repeat(1, 1, 8), stride=8)[
        ..., 0
    ],
    groups=lambda x, w: functional.conv_transpose1d(
        x.repeat(1, 64)[..., None], w.T[..., None].repeat(64, 1, 1), groups=64
    )[:, :4, 0],
    bilinear=lambda x, w: functional.bilinear(x, torch.ones(len(x), 1), w[..., None]),
    rmatmul=lambda x, w: torch.Tensor.__rmatmul__(w.T, x),
)
"""Functions that compute `linear`."""


@pytest.mark.parametrize('name', SUMS)
def test_the_same_sums_have_the_same_rounding_whichever_function_adds_them(name):
    generator = torch.Generator().manual_seed(1000)  # no seed of a draw
    x, w = (torch.rand(rows, 512, generator=generator) for rows in (32, 4))
    exact = dict(y=(x.double() @ w.double().T).numpy())
    runs = [lambda function=f: dict(y=function(x, w).numpy()) for f in (functional.linear, SUMS[name])]
    linear, other = (rounding_of(None, exact, run)(3)['y'].mean() for run in runs)
    assert 0.7 < other / linear < 1.4


def test_float64_weights_take_the_place_of_the_models_own():
    layer = torch.nn.Linear(2, 2)
    values, storage = layer.weight.detach().clone(), StorageWeakRef(layer.weight.untyped_storage())
    with in_float64(layer):
        assert layer.weight.dtype == torch.float64 and storage.expired()
    assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight, values)


def test_a_draw_keeps_float64_code_and_rounds_what_it_gives_to_float32():
    start = torch.tensor([1.5e9 + 0.25], dtype=torch.float64)
    layer = nn.Linear(1, 1)

    def run():
        seconds = torch.tensor([1.5e9 + 0.75], dtype=torch.float64) - start
        return seconds, layer(seconds.float()).double() * 1e3

    with in_float64(layer):
        exact = run()
    with in_float64(layer, seed=0):
        drawn = run()
    assert torch.equal(drawn[0], exact[0])
    assert 0 < (drawn[1] - exact[1]).abs() < 1e-2
    assert not hasattr(layer.weight, WIDENED)
