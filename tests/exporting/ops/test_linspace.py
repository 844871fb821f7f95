"""`torch.linspace` over an axis of any size, one row included."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.cnn.bricks.generalized_attention import GeneralizedAttention

from mmdeploy_ext.exporting.export import export_module


class Positions(torch.nn.Module):
    """The height of each row between -1 and 1, added to a map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(-1, 1, x.shape[2], dtype=torch.float32, device=x.device)
        return x + rows.view(-1, 1)


@pytest.mark.parametrize(
    'module',
    [Positions(), GeneralizedAttention(16, num_heads=2, kv_stride=2, attention_type='1111')],
    ids=['positions', 'attention'],
)
def test_maps_of_one_row_or_column_equal_pytorch(module):
    torch.manual_seed(0)
    if isinstance(module, GeneralizedAttention):
        torch.nn.init.ones_(module.gamma)
    module.eval()
    example = torch.randn(1, 16, 6, 8)
    graph = export_module(module, [example], dynamic={'input_0': {2: 'H', 3: 'W'}})
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in [(6, 8), (1, 1), (2, 3), (9, 1)]:
        x = torch.randn(1, 16, *size)
        with torch.no_grad():
            expected = module(x).numpy()
        (result,) = session.run(None, {'input_0': x.numpy()})
        np.testing.assert_allclose(result, expected, atol=2e-6)


class Centres(torch.nn.Module):
    """The centre of each row, as shares of the height, at which a map is read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height = x.shape[2]
        rows = torch.linspace(0.5, height - 0.5, height, dtype=torch.float32, device=x.device) / height
        grid = torch.stack([rows, rows], -1)[None, None] * 2 - 1
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def test_steps_from_a_fraction_have_their_type_in_a_graph_of_a_fixed_size():
    x = torch.randn(1, 2, 4, 4)
    graph = export_module(Centres(), [x])
    (result,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {'input_0': x.numpy()})
    np.testing.assert_allclose(result, Centres()(x).numpy(), atol=2e-6)
