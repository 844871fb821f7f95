"""The worked examples against PyTorch, mmcv and a slow reference: empty, one, ties, edges."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import nms_rotated
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attn_pytorch,
)

import toy_operators as toys
from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.ops import attention, nms, rotated_nms
from mmdeploy_ext.exporting.ops.upsample_bicubic import upsample_bicubic

# ---- rotated NMS


@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('count', [1, 2, 40])
def test_the_traceable_form_keeps_what_mmcv_keeps(count, threshold):
    for seed in range(10):
        boxes, scores = map(torch.from_numpy, toys.rotated_boxes(seed, count))
        wanted = nms_rotated(boxes, scores, threshold)[1]
        assert torch.equal(rotated_nms._traceable(boxes, scores, threshold), wanted)
        assert np.array_equal(rotated_nms._numpy(boxes.numpy(), scores.numpy(), threshold), wanted.numpy())


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_exported_rotated_nms_of_no_one_and_equal_boxes(exporter):
    model = toys.export(toys.build(toys.RotatedDetector), exporter)
    box = np.array([[1, 2, 4, 2, 0.3]], np.float32)
    for count, kept in ((0, 0), (1, 1), (5, 1)):
        feeds = box.repeat(count, 0), np.arange(count, dtype=np.float32)
        assert toys.run(model, feeds, toys.RotatedDetector.inputs)[0].shape == (kept, 5)


def test_greedy_keep_is_a_chain():
    """0 removes 1, so 1 removes nothing and 2 stays; 2 removes 3."""
    chain = torch.zeros(4, 4, dtype=torch.bool)
    chain[0, 1] = chain[1, 2] = chain[2, 3] = True
    assert nms.greedy_keep(chain).tolist() == [True, False, True, False]


# ---- bicubic


@pytest.mark.parametrize('exporter', ['torchscript', 'dynamo'])
def test_every_factor_gives_pytorchs_picture(exporter):
    net = toys.build(toys.SuperResolution)
    model = toys.export(net, exporter)
    x = np.random.default_rng(0).random((1, 3, 10, 7), np.float32)
    for factor in (0.5, 1.0, 1.5, 2.0, 3.7, 4.0):
        feeds = x, np.array([factor], np.float32)
        toys.assert_same(net, toys.run(model, feeds, net.inputs), feeds)


class Frozen(torch.nn.Module):
    """What people write first: the factor becomes a Python number."""

    def forward(self, x, scale):
        return F.interpolate(x, scale_factor=float(scale), mode='bicubic')


def test_the_obvious_way_freezes_the_factor_or_is_refused():
    """Measured with torch 2.13: why the operator is there at all."""
    args = torch.rand(1, 3, 4, 4), torch.tensor([2.0])
    model = export_module(Frozen().eval(), args, exporter='torchscript', opset=18)
    assert [value.name for value in model.graph.input] == ['input_0']
    with pytest.raises(Exception, match='data-dependent'):
        export_module(Frozen().eval(), args, exporter='dynamo', opset=18)


def test_bicubic_is_pytorchs_own_outside_an_export():
    x, scale = torch.rand(2, 3, 5, 6), torch.tensor([1.7])
    wanted = F.interpolate(x, scale_factor=float(scale), mode='bicubic', align_corners=False)
    assert torch.equal(upsample_bicubic(x, scale), wanted)


# ---- deformable attention


def attention_inputs(seed):
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[5, 4], [3, 6], [1, 1]])
    batch, heads, queries, points = 2, 3, 7, 4
    value = torch.randn(batch, int(sizes.prod(1).sum()), heads, 8, generator=rng)
    locations = torch.rand(batch, queries, heads, 3, points, 2, generator=rng) * 1.6 - 0.3  # some outside
    weights = torch.rand(batch, queries, heads, 3 * points, generator=rng).softmax(-1)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return value, sizes, starts, locations, weights.unflatten(3, (3, points))


@pytest.mark.parametrize('seed', range(5))
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


@pytest.mark.parametrize('columns', [1, 3, 5])
def test_reference_points_are_points_or_boxes(columns):
    with pytest.raises(ShapeError, match=f'of {columns} values; expected 2 or 4'):
        attention.sampling_locations(
            torch.rand(1, 2, 1, columns), torch.rand(1, 2, 1, 1, 3, 2), torch.tensor([[2, 3]])
        )


def test_mmcvs_forward_is_put_back():
    before = MultiScaleDeformableAttention.forward
    with pytest.raises(RuntimeError), attention.standard_deformable_attention():
        assert MultiScaleDeformableAttention.forward is not before
        raise RuntimeError
    assert MultiScaleDeformableAttention.forward is before


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('columns', [2, 4])
def test_the_module_inside_the_block_is_mmcvs(batch_first, columns):
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=batch_first).eval()
    for layer in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
    sizes = torch.tensor([[4, 5], [2, 3]])
    query, position, value = (torch.randn(2, count, 16) for count in (7, 7, 26))
    if not batch_first:
        query, position, value = (tensor.transpose(0, 1) for tensor in (query, position, value))
    arguments = dict(
        value=value,
        query_pos=position,
        key_padding_mask=torch.rand(2, 26) < 0.3,
        reference_points=torch.rand(2, 7, 2, columns),
        spatial_shapes=sizes,
        level_start_index=torch.tensor([0, 20]),
    )
    with torch.no_grad():
        wanted = module(query, **arguments)
        with attention.standard_deformable_attention():
            found = module(query, **arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)
