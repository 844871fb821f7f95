"""Parts of Swin and PVT that are computed from traced sizes equal mmdet's, and leave mmdet's as they are."""

import math

import pytest
import torch
from mmdet.models.backbones.pvt import SpatialReductionAttention
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.models.utils.transformer import AdaptivePadding

from mmdeploy_ext.exporting.copy import keep_position_bias
from mmdeploy_ext.upstream.operators.attention import SIZED, sizes_traced

SIZES = [(4, 4), (8, 4), (9, 15), (3, 2), (1, 1), (16, 5)]
"""(h, w) of maps, in windows of 4: one window, several, and parts of windows."""


def tokens(size, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, size[0] * size[1], 8, generator=generator)


def both(module, *arguments):
    """Return what mmdet's module gives, and what the module gives while sizes are traced."""
    with torch.no_grad():
        expected, cls = module(*arguments), type(module)
        with sizes_traced(module):
            assert type(module) is SIZED[cls.__name__]
            given = module(*arguments)
    assert type(module) is cls
    return expected, given


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('shift', [0, 2])
def test_windows_are_those_of_mmdet(size, shift):
    torch.manual_seed(0)
    module = ShiftWindowMSA(8, 2, window_size=4, shift_size=shift).eval()
    torch.nn.init.normal_(module.w_msa.relative_position_bias_table)
    expected, given = both(module, tokens(size), size)
    assert torch.equal(expected, given)


@pytest.mark.parametrize('size', SIZES[:3])
@pytest.mark.parametrize(('ratio', 'bias'), [(1, True), (2, True), (2, False)])
def test_reduced_attention_is_that_of_mmdet(size, ratio, bias):
    torch.manual_seed(0)
    module = SpatialReductionAttention(8, 2, sr_ratio=ratio, qkv_bias=bias).eval()
    expected, given = both(module, tokens(size), size)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('kernel', 'stride'), [(4, 4), (3, 2), (1, 1)])
def test_a_map_is_padded_as_mmdet_pads_it(kernel, stride):
    for size in SIZES:
        expected, given = both(AdaptivePadding(kernel, stride), torch.ones(1, 1, *size))
        assert torch.equal(expected, given)


@pytest.mark.parametrize(('shape', 'kept'), [((4, 4), True), ((16,), True), ((15,), False)])
def test_a_bias_by_positions_is_kept_whatever_the_axes_of_its_indices(shape, kept):
    module = torch.nn.Module()
    module.relative_position_bias_table = torch.nn.Parameter(torch.rand(9, 2))
    module.relative_position_index = (torch.arange(math.prod(shape)) % 9).reshape(shape)
    keep_position_bias(module)
    assert hasattr(module, 'relative_position_bias') == kept
    if kept:
        looked_up = module.relative_position_bias_table[module.relative_position_index].view(4, 4, 2)
        assert module.relative_position_bias.equal(looked_up.permute(2, 0, 1))
