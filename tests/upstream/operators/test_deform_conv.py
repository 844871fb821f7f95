"""mmcv's deformable convolutions become the standard DeformConv with the same numbers; patches are undone."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from mmdet.models.necks import DyHead
from torch import nn

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.spec.options import IMAGE, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.deform_conv import LeadingOffsets

SHAPES = {
    'dilated': dict(dilation=2, padding=2),
    'unequal': dict(kernel_size=(3, 1), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    'both groups': dict(groups=4, deform_groups=2, stride=2),
}


def seeded(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def image(seed, batch, channels, height, width):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def graph_of(module, opset, x, outputs=('y',)):
    spec = GraphSpec(
        'op',
        (TensorSpec('x', 'float32', ('B', x.shape[1], 'H', 'W')),),
        tuple(TensorSpec(name, 'float32', ('B', x.shape[1], f'{name}_h', f'{name}_w')) for name in outputs),
    )
    stage = Stage('op', module, ('x',), outputs)
    return export.export_stages([stage], {'x': x}, spec, Options(IMAGE, opset=opset, dynamic=True))


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )


def assert_equal_on_unseen(module, model, inputs):
    session = session_of(model)
    for x in inputs:
        with torch.no_grad():
            wanted = module(x)
        wanted = wanted if isinstance(wanted, tuple | list) else [wanted]
        for reference, got in zip(wanted, session.run(None, {'x': x.numpy()}), strict=True):
            reference = reference.numpy()
            assert got.shape == reference.shape
            assert np.abs(reference).max() > 0
            assert np.abs(got - reference).max() <= 1e-5 * np.abs(reference).max()


UNSEEN = [image(1, 1, 8, 12, 14), image(2, 2, 8, 9, 17)]


@pytest.mark.parametrize(
    ('kind', 'shape', 'opset'),
    [
        ('v1', 'unequal', 19),
        ('v2', 'dilated', 19),
        ('v2 with bias', 'both groups', 19),
        ('v1', 'both groups', 20),
    ],
)
def test_equals_mmcv_on_other_sizes_and_batches(kind, shape, opset):
    settings = {'kernel_size': 3, 'padding': 1, **SHAPES[shape]}
    cls = DeformConv2dPack if kind == 'v1' else ModulatedDeformConv2dPack
    module = seeded(cls(8, 8, bias=kind == 'v2 with bias', **settings))
    model = graph_of(module, opset, image(0, 1, 8, 12, 14))
    assert [node.op_type for node in model.graph.node].count('DeformConv') == 1
    assert {entry.domain for entry in model.opset_import} == {''}
    assert_equal_on_unseen(module, model, UNSEEN)


class OffsetsFromLarger(nn.Module):
    """Use the offsets of a map for its half-size neighbour, as DyHead does."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Conv2d(8, 27, 3, padding=1)
        self.conv = ModulatedDeformConv2d(8, 8, 3, padding=1)

    def forward(self, x):
        values = self.offset(x)
        small = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.conv(small, values[:, :18].contiguous(), values[:, 18:].sigmoid().contiguous())


@pytest.mark.parametrize('size', [(9, 17), (1, 1)])
def test_leading_offsets_are_what_mmcv_reads_bit_for_bit(size):
    module = seeded(OffsetsFromLarger())
    x = image(4, 3, 8, *size)
    with torch.no_grad():
        wanted = module(x)
        module.conv = LeadingOffsets(module.conv)
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)


class Pyramid(nn.Module):
    """Three levels through mmdet's DyHead."""

    def __init__(self):
        super().__init__()
        self.dyhead = DyHead(16, 16, num_blocks=1, zero_init_offset=False)

    def forward(self, x):
        half = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.dyhead([x, half, nn.functional.max_pool2d(half, 3, 2, 1)])


def test_dyhead_of_mmdet_exports_and_equals_itself_on_other_sizes():
    torch.manual_seed(0)
    module = Pyramid().eval()
    model = graph_of(prepared(module), 19, image(0, 1, 16, 16, 24), ('p3', 'p4', 'p5'))
    assert_equal_on_unseen(module, model, [image(1, 1, 16, 32, 24), image(2, 2, 16, 13, 21)])
