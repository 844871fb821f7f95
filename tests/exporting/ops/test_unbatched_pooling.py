"""Pooling of maps without an axis for the batch equals PyTorch in a file."""

import onnxruntime
import pytest
import torch
from torch import nn

from mmdeploy_ext.exporting.export import export_module

LAYERS = {
    'three axes, the last one of channels': (nn.MaxPool3d((2, 2, 1)), (2, 4, 6, 5)),
    'two axes': (nn.MaxPool2d(2), (3, 4, 6)),
    'to a size': (nn.AdaptiveAvgPool2d(2), (3, 4, 6)),
    'with a batch': (nn.AdaptiveMaxPool2d(1), (2, 3, 4, 6)),
}


@pytest.mark.parametrize(('layer', 'shape'), LAYERS.values(), ids=LAYERS)
def test_a_pooled_map_equals_pytorch_s(layer, shape):
    maps = torch.rand(shape)
    graph = export_module(layer.eval(), [maps])
    (result,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {'input_0': maps.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), layer(maps))
