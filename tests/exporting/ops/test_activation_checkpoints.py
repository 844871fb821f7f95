"""Layers under an activation checkpoint are in the graph, by both exporters."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils import checkpoint

from mmdeploy_ext.exporting.export import export_module


class Checkpointed(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer, self.options = torch.nn.Linear(4, 3), options

    def forward(self, x):
        return checkpoint.checkpoint(self.layer, x, **self.options).relu()


@pytest.mark.parametrize('exporter', ['torchscript', 'dynamo'])
@pytest.mark.parametrize('options', [{}, dict(use_reentrant=False)], ids=['reentrant', 'not reentrant'])
@pytest.mark.filterwarnings('ignore')
def test_a_checkpointed_layer_is_exported(exporter, options):
    torch.manual_seed(0)
    module, x = Checkpointed(**options).eval(), torch.randn(2, 4)
    expected = module(x).detach().numpy()
    model = export_module(module, [x], exporter=exporter)
    (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'input_0': x.numpy()})
    np.testing.assert_allclose(result, expected, atol=1e-6)
