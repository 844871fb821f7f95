"""Deformable attention by gathers and by GridSample, against mmcv's CPU form."""

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from mmdeploy_ext.upstream.operators import attention


def attention_inputs(seed):
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[5, 4], [3, 6], [1, 1]])
    batch, heads, queries, points = 2, 3, 7, 4
    value = torch.randn(batch, int(sizes.prod(1).sum()), heads, 8, generator=rng)
    locations = torch.rand(batch, queries, heads, 3, points, 2, generator=rng) * 1.6 - 0.3  # some outside
    weights = torch.rand(batch, queries, heads, 3 * points, generator=rng).softmax(-1)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return value, sizes, starts, locations, weights.unflatten(3, (3, points))


@pytest.mark.parametrize('seed', range(3))
def test_gathers_and_grid_sample_and_mmcv_agree(seed):
    value, sizes, starts, locations, weights = attention_inputs(seed)
    wanted = multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
    small = sizes.to(torch.int32), starts.to(torch.int32)
    found = attention._traceable(value, *small, locations, weights).flatten(2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    maps = [
        part.flatten(2).transpose(1, 2).unflatten(1, (3, 8)).flatten(0, 1).unflatten(2, tuple(size))
        for part, size in zip(value.split(sizes.prod(1).tolist(), 1), sizes.tolist(), strict=True)
    ]
    mixed = attention.attend_maps(
        maps, 2 * locations - 1, weights.transpose(1, 2).flatten(3).flatten(0, 1)[:, None]
    )
    found = mixed.unflatten(0, (2, 3)).permute(0, 3, 1, 2).flatten(2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_a_whole_pixel_reads_that_pixel():
    value = torch.arange(6.0).reshape(1, 6, 1, 1)
    sizes, starts = torch.tensor([[2, 3]]), torch.tensor([0])
    middle = torch.tensor([[(column + 0.5) / 3, (row + 0.5) / 2] for row in range(2) for column in range(3)])
    found = attention.attend(
        value, sizes, starts, middle.reshape(1, 6, 1, 1, 1, 2), torch.ones(1, 6, 1, 1, 1)
    )
    torch.testing.assert_close(found.flatten(), torch.arange(6.0))
