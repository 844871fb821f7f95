"""PyTorch in float64: all of it, whatever dtype the code asks for, and nothing is left behind."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdeploy_ext.proving.float64 import in_float64, rounding_of


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
    found = rounding_of(None, reference, lambda: results)()
    assert {name: array.tolist() for name, array in found.items()} == dict(a=[0.5, 0, 0], b=[[0]], c=[0])

    def refuses():
        assert torch.ones(1, dtype=torch.float32).dtype == torch.float32
        return results

    assert rounding_of(None, reference, refuses)() == {}
    with pytest.raises(AssertionError), in_float64(None):
        refuses()
    assert torch.get_default_dtype() == torch.float32
