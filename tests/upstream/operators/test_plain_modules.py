"""Plain modules that an exporter of PyTorch writes wrong or not at all: a file equals the module."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.cnn.bricks.generalized_attention import GeneralizedAttention
from torch import nn
from torch.utils import checkpoint

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.torch_patches import linspace_of_its_type, linspace_of_one_step

WINDOW = 4


class Checkpointed(nn.Linear):
    """A layer under an activation checkpoint."""

    def __init__(self, **options):
        super().__init__(6, 3)
        self.options = options

    def forward(self, x):
        return checkpoint.checkpoint(super().forward, x, **self.options).relu()


class Windows(nn.Module):
    """Numbers the columns of windows as Swin's mask does: of a map one window wide no column is the first."""

    def forward(self, x):
        mask = torch.zeros((1, 1, x.shape[2], x.shape[3]))
        for number, columns in enumerate((slice(0, -WINDOW), slice(-WINDOW, -2), slice(-2, None))):
            mask[:, :, :, columns] = number + 1
        return x + mask


class Marked(nn.Module):
    """Writes where values say so, which is nowhere for zeros."""

    def forward(self, x):
        large, y = x > 5, x * 1
        y[large] = 1.0
        y[large[:, 0].nonzero()[:, 0]] = 7.0
        y[: large[:2, 0].sum()] = 8.0
        y[:, x.shape[1] :] = 9.0
        return y


class Positions(nn.Module):
    """The height of each row between -1 and 1, added to a map."""

    def forward(self, x):
        return x + torch.linspace(-1, 1, x.shape[2], dtype=torch.float32, device=x.device).view(-1, 1)


class Centres(nn.Module):
    """The centre of each row, as shares of the height, at which a map is read."""

    def forward(self, x):
        height = x.shape[2]
        rows = torch.linspace(0.5, height - 0.5, height, dtype=torch.float32, device=x.device) / height
        grid = torch.stack([rows, rows], -1)[None, None] * 2 - 1
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def attention():
    module = GeneralizedAttention(16, num_heads=2, kv_stride=2, attention_type='1111')
    nn.init.ones_(module.gamma)
    return module


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


MAPS = [drawn(1, 16, *size) for size in ((6, 8), (1, 1), (2, 3), (9, 1))]
ANY_SIZE = {'input_0': {2: 'H', 3: 'W'}}
CASES = {
    'a checkpoint': (Checkpointed, [drawn(2, 6)], {}),
    'a checkpoint that is not reentrant': (lambda: Checkpointed(use_reentrant=False), [drawn(2, 6)], {}),
    'one window': (Windows, [drawn(1, 1, 5, WINDOW)], {}),
    'two windows': (Windows, [drawn(1, 1, 5, WINDOW + 3)], {}),
    'writes that are empty for the example': (Marked, [torch.zeros(4, 3), torch.full((4, 3), 6.0)], {}),
    'rows': (Positions, MAPS, ANY_SIZE),
    'attention by places': (attention, MAPS, ANY_SIZE),
    'rows from a fraction': (Centres, [drawn(1, 2, 4, 4)], {}),
    'pooling without a batch, the last axis of channels': (
        lambda: nn.MaxPool3d((2, 2, 1)),
        [drawn(2, 4, 6, 5)],
        {},
    ),
    'pooling to a size without a batch': (lambda: nn.AdaptiveAvgPool2d(2), [drawn(3, 4, 6)], {}),
    'pooling of a batch': (lambda: nn.AdaptiveMaxPool2d(1), [drawn(2, 3, 4, 6)], {}),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.filterwarnings('ignore')
def test_a_file_equals_the_module(case):
    make, inputs, dynamic = CASES[case]
    torch.manual_seed(0)
    module = make().eval()
    model = export_module(module, inputs[:1], dynamic=dynamic)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for x in inputs:
        with torch.no_grad():
            expected = module(x).numpy()
        np.testing.assert_allclose(session.run(None, {'input_0': x.numpy()})[0], expected, atol=2e-6)


@pytest.mark.parametrize('patch', [linspace_of_its_type, linspace_of_one_step])
@pytest.mark.filterwarnings('ignore')
def test_places_of_a_fixed_number_are_traced_as_numbers(patch):
    """TorchScript writes `aten::linspace` in float64 where it does not compute it beforehand."""

    def centres(x):
        return x + torch.linspace(0.5, 3.5, 4, dtype=x.dtype)

    with patch():
        graph = torch.jit.trace(centres, torch.zeros(4)).graph
    assert not graph.findAllNodes('aten::linspace')
