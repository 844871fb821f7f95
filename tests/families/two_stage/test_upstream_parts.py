"""Parts of mmdet that no exporter follows, as their exported copies compute them at sizes never traced."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.necks import BFP, NASFPN
from mmdet.models.necks.nasfcos_fpn import NASFCOS_FPN
from torch import nn

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dense_heads import FAMILY, make_head
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.common.upstream_layers import pooled
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

SEEN, UNSEEN = (1, 64, 96), ((2, 88, 56), (1, 130, 201), (3, 64, 64))


def levels(size, channels, strides=(8, 16, 32, 64)):
    """Return maps of each level for (batch, height, width)."""
    draw = torch.Generator().manual_seed(sum(size))
    shapes = [(size[0], channels, -(-size[1] // stride), -(-size[2] // stride)) for stride in strides]
    return [torch.randn(shape, generator=draw) for shape in shapes]


class Listed(nn.Module):
    """A part that takes a list of maps, behind flat tensors."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *maps):
        found = self.part(maps)
        found = [found] if isinstance(found, torch.Tensor) else found
        return tuple(one for kind in found for one in (kind if isinstance(kind, list | tuple) else [kind]))


def check(part, channels, strides=(8, 16, 32, 64), most=1e-5, times=1):
    """Assert that the graph of a part, traced at one size, gives what the part does at others."""
    torch.manual_seed(0)
    for name, value in part.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand_like(value) + 0.5 if 'running_var' in name else torch.randn_like(value) * 0.2
            )
    part, sizes = Listed(part.eval()), [(batch, h * times, w * times) for batch, h, w in (SEEN, *UNSEEN)]
    maps = levels(sizes[0], channels, strides)
    with torch.no_grad():
        count = len(part(*maps))
    names = [f'map_{level}' for level in range(len(maps))]
    given = [('B', channels, f'h{level}', f'w{level}') for level in range(len(maps))]
    contract = GraphSpec(
        'part',
        tuple(TensorSpec(name, 'float32', shape) for name, shape in zip(names, given, strict=True)),
        tuple(
            TensorSpec(f'out_{one}', 'float32', ('B', f'c{one}', f'H{one}', f'W{one}'))
            for one in range(count)
        ),
    )
    stage = Stage('part', prepared(part), tuple(names), tuple(tensor.name for tensor in contract.outputs))
    options = FAMILY.choose(opset=19, dynamic=True)
    model = export.export_stages([stage], dict(zip(names, maps, strict=True)), contract, options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    for size in sizes:
        maps = levels(size, channels, strides)
        with torch.no_grad():
            wanted = part(*maps)
        found = session.run(None, {name: one.numpy() for name, one in zip(names, maps, strict=True)})
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs.numpy(), atol=most * float(theirs.abs().max()))


@pytest.mark.parametrize('size', [(10, 14, 3, 4), (25, 34, 7, 9), (5, 7, 5, 7), (7, 1, 2, 1)])
def test_windows_are_those_of_adaptive_pooling(size):
    maps = torch.randn(2, 3, *size[:2])
    assert torch.equal(pooled(maps, size[2:]), nn.functional.adaptive_max_pool2d(maps, size[2:]))


@pytest.mark.parametrize('refine', [None, 'non_local'])
def test_bfp(refine):
    check(BFP(8, 4, refine_level=1, refine_type=refine), 8)


def test_nas_fpn():
    check(NASFPN([8] * 4, 8, 5, stack_times=1, norm_cfg=dict(type='BN')), 8, times=2)


def test_nas_fcos_fpn():
    norm = dict(type='BN')
    plain = dict(conv_cfg=dict(type='Conv'), norm_cfg=norm)
    check(NASFCOS_FPN([8] * 4, 8, 5, start_level=1, add_extra_convs=True, **plain), 8, (4, 8, 16, 32))


@pytest.mark.parametrize('kernel, stride', [(3, 1), (3, 2), (5, 2), (1, 1), (1, 2)])
def test_convolutions_that_pad_by_their_input(kernel, stride):
    conv = dict(type='Conv2dAdaptivePadding')
    part = ConvModule(4, 6, kernel, stride=stride, conv_cfg=conv, norm_cfg=dict(type='BN'))
    check(nn.Sequential(First(), part), 4, (8,))


class First(nn.Module):
    """Take the only map of a list."""

    def forward(self, maps):
        return maps[0]


@pytest.mark.matrix
def test_tood_at_other_batches():
    head = make_head('TOODHead')
    strides = [stride[0] for stride in head.prior_generator.strides]
    check(head, 256, strides, most=1e-4)
