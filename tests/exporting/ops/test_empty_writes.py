"""A map that is one window wide exports: writes into no element leave nothing in a trace."""

import onnxruntime
import pytest
import torch
from torch import nn

from mmdeploy_ext.exporting.export import export_module

WINDOW = 4


class Windows(nn.Module):
    """Numbers the columns of windows as Swin's mask does, and adds them."""

    def forward(self, x):
        """Return a map (1, 1, H, W) with its mask."""
        mask = torch.zeros((1, 1, x.shape[2], x.shape[3]))
        for number, columns in enumerate((slice(0, -WINDOW), slice(-WINDOW, -2), slice(-2, None))):
            mask[:, :, :, columns] = number + 1
        return x + mask


@pytest.mark.parametrize('width', [WINDOW, WINDOW + 3])
def test_a_write_into_no_element_is_exported_as_nothing(width):
    x = torch.rand(1, 1, 5, width)
    model = export_module(Windows(), (x,))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (output,) = session.run(None, {'input_0': x.numpy()})
    assert torch.equal(torch.from_numpy(output), Windows()(x))


class Marked(nn.Module):
    """Writes where values say so, which is nowhere for zeros."""

    def forward(self, x):
        """Return a map of the shape of `x` (R, C)."""
        large, y = x > 5, x * 1
        y[large] = 1.0
        y[large[:, 0].nonzero()[:, 0]] = 7.0
        y[: large[:2, 0].sum()] = 8.0
        y[:, x.shape[1] :] = 9.0
        return y


def test_a_write_that_is_empty_for_the_example_alone_stays():
    model = export_module(Marked(), (torch.zeros(4, 3),))
    x = torch.full((4, 3), 6.0)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (output,) = session.run(None, {'input_0': x.numpy()})
    assert torch.equal(torch.from_numpy(output), Marked()(x)) and output[:, 0].tolist() == [8, 8, 7, 7]
