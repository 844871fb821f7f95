"""Weights near zero are zeros in a file; single numbers and other weights stay."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from mmdeploy_ext.exporting.export import export_stages
from mmdeploy_ext.graphs.io.index import all_tensors
from mmdeploy_ext.graphs.passes.constants import zero_denormals
from mmdeploy_ext.spec.options import EXPORTER, OPSET, SIMPLIFY, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec


class Linear(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weight, self.least = torch.nn.Parameter(torch.tensor([weights])), torch.tensor(1e-38)

    def forward(self, x):
        return (x @ self.weight.T).clamp(min=0) + self.least


@pytest.mark.parametrize(
    ('weights', 'written'),
    [([1e-40, 2e-37, -3e-38, 1.0], [0, 2e-37, 0, 1]), ([0.0, 2e-37, 0.5, 1.0], [0, 2e-37, 0.5, 1])],
)
def test_weights_near_zero_are_written_as_zero(weights, written):
    spec = GraphSpec('g', (TensorSpec('x', 'float32', (1, 4)),), (TensorSpec('y', 'float32', (1, 1)),))
    stage = Stage('', Linear(weights), ('x',), ('y',))
    model = export_stages([stage], dict(x=torch.ones(1, 4)), spec, Options((OPSET, EXPORTER, SIMPLIFY)))
    arrays = [numpy_helper.to_array(tensor) for tensor in all_tensors(model)]
    (found,) = (array.ravel() for array in arrays if array.size == 4)
    np.testing.assert_array_equal(found, np.float32(written))
    assert any(array.dtype == np.float32 and array.size == 1 and 0 < array.item() < 1e-37 for array in arrays)
    assert zero_denormals(model) == (model, False)
