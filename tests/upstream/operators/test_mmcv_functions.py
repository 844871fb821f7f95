"""Operators of mmcv in a module of the user's: a right file, or a refusal that names what is missing."""

import functools

import mmcv.ops
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from marking import in_suite
from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.export import export_module

OPSETS = 11, 16, 17, 18, 20
DRAW = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 8, 12, 16, generator=DRAW)
ROIS = torch.tensor(
    [[0, 1.3, 2.7, 40, 30], [1, -4.0, 3, 50, 47.5], [0, 10, 10, 10, 10], [1, 20, 5.5, 61, 33]]
)
BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 12], [20, 20, 30, 30], [29, 20, 39, 30], [5, 5, 6, 6]])
SCORES = torch.tensor([0.9, 0.8, 0.0, -0.4, 0.3])
ROTATED = torch.tensor([[10, 10, 8, 4, 0.3], [10.5, 10, 8, 4, 0.35], [30, 30, 6, 6, 0], [50, 50, 3, 9, 1]])
QUADS = BOXES[:, [0, 1, 2, 1, 2, 3, 0, 3]]
POINTS = torch.rand(2, 9, 2, generator=DRAW) * 1.4 - 0.2
LEVELS = torch.tensor([[6, 8], [3, 4]]), torch.tensor([0, 48])
KERNEL, OPERATOR, NEWER = 'kernel', 'operator of mmcv', '--opset-version'
"""Words of refusals."""


class Calls(nn.Module):
    """Calls a function, with layers of its own."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *tensors):
        return self.function(*self.layers, *tensors)


def drawn(layer):
    """Return a layer with weights by a seed; mmcv begins with zeros."""
    generator = torch.Generator().manual_seed(1)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator)
    return layer


def align(**settings):
    return lambda: mmcv.ops.RoIAlign((7, 5), 0.25, **settings)


def calls(name, **settings):
    return lambda: Calls(functools.partial(getattr(mmcv.ops, name), **settings))


def deformable(kind, **settings):
    return lambda: drawn(kind(8, 8, 3, padding=1, **settings))


def attention():
    layer = drawn(mmcv.ops.MultiScaleDeformableAttention(16, 4, 2, 4, dropout=0.0, batch_first=True))
    shapes, starts = LEVELS
    return Calls(
        lambda part, query, value, points: part(
            query, value=value, reference_points=points, spatial_shapes=shapes, level_start_index=starts
        ),
        layer,
    )


OFFSETS, MASKS = torch.randn(2, 18, 12, 16, generator=DRAW), torch.rand(2, 9, 12, 16, generator=DRAW)
GRID = torch.rand(2, 4, 5, 2, generator=DRAW) * 2.6 - 1.3
TABLE = {
    'RoIAlign': (align(sampling_ratio=2, aligned=True), (MAPS, ROIS), 16, NEWER),
    'RoIAlign, adaptive': (align(sampling_ratio=0, aligned=True), (MAPS, ROIS), 16, NEWER),
    'RoIAlign, not aligned': (align(sampling_ratio=-1, aligned=False), (MAPS, ROIS), 11, ''),
    'RoIAlign, maximum': (align(pool_mode='max'), (MAPS, ROIS), None, 'pool_mode'),
    'deform_roi_pool': (calls('deform_roi_pool', offset=None, output_size=(3, 3)), (MAPS, ROIS), 16, NEWER),
    'SimpleRoIAlign, two images': (lambda: mmcv.ops.SimpleRoIAlign(3, 0.25), (MAPS, ROIS), None, 'one image'),
    'SimpleRoIAlign': (
        lambda: mmcv.ops.SimpleRoIAlign(3, 0.25),
        (MAPS[:1], ROIS * torch.tensor([0, 1, 1, 1, 1])),
        11,
        '',
    ),
    'RoIAlignRotated': (
        lambda: mmcv.ops.RoIAlignRotated((3, 5), 0.25, 2),
        (MAPS, torch.cat([ROIS[:, :1], ROTATED], 1)),
        None,
        OPERATOR,
    ),
    'grid_sample': (
        lambda: Calls(functools.partial(nn.functional.grid_sample, align_corners=False)),
        (MAPS, GRID),
        16,
        NEWER,
    ),
    'point_sample': (calls('point_sample'), (MAPS, POINTS), 11, ''),
    'point_sample, nearest': (calls('point_sample', mode='nearest'), (MAPS, POINTS), 16, NEWER),
    'point_sample, border': (calls('point_sample', padding_mode='border'), (MAPS, POINTS), 16, NEWER),
    'deform_conv': (deformable(mmcv.ops.DeformConv2d), (MAPS, OFFSETS), 19, NEWER),
    'modulated_deform_conv': (
        deformable(mmcv.ops.ModulatedDeformConv2d),
        (MAPS, OFFSETS, MASKS),
        19,
        NEWER,
    ),
    'SAConv2d': (deformable(mmcv.ops.SAConv2d, use_deform=True), (MAPS,), 19, NEWER),
    'MultiScaleDeformableAttention': (
        attention,
        [torch.rand(2, *shape, generator=DRAW) for shape in ((5, 16), (60, 16), (5, 2, 2))],
        16,
        NEWER,
    ),
    'nms': (calls('nms', iou_threshold=0.5), (BOXES, SCORES), 11, ''),
    'nms, pixels are closed': (calls('nms', iou_threshold=0.07, offset=1), (BOXES, SCORES), 11, ''),
    'nms, limits': (
        calls('nms', iou_threshold=0.5, score_threshold=0.05, max_num=1),
        (BOXES, SCORES),
        11,
        '',
    ),
    'batched_nms': (
        calls('batched_nms', idxs=torch.tensor([0, 1, 1, 0, 1]), nms_cfg=dict(iou_threshold=0.5)),
        (BOXES, SCORES),
        11,
        '',
    ),
    'soft_nms': (calls('soft_nms'), (BOXES, SCORES), None, OPERATOR),
    'nms_rotated': (calls('nms_rotated', iou_threshold=0.3), (ROTATED, SCORES[:4]), None, KERNEL),
    'nms_quadri': (calls('nms_quadri', iou_threshold=0.3), (QUADS, SCORES), None, KERNEL),
    'nms_match': (
        lambda: Calls(lambda boxes: mmcv.ops.nms_match(boxes, 0.3)[0]),
        (torch.cat([BOXES, SCORES[:, None]], 1),),
        None,
        KERNEL,
    ),
    'box_iou_rotated': (calls('box_iou_rotated'), (ROTATED, ROTATED + 0.5), None, KERNEL),
    'box_iou_quadri': (calls('box_iou_quadri'), (QUADS, QUADS + 0.5), None, KERNEL),
    'bbox_overlaps': (calls('bbox_overlaps'), (BOXES, BOXES + 0.5), None, KERNEL),
    'points_in_boxes_cpu': (
        calls('points_in_boxes_cpu'),
        (torch.rand(1, 6, 3, generator=DRAW), torch.tensor([[[0.5, 0.5, 0, 0.5, 0.5, 1, 0.2]]])),
        None,
        KERNEL,
    ),
    'MaskedConv2d': (
        lambda: drawn(mmcv.ops.MaskedConv2d(8, 4, 3, padding=1)),
        (MAPS[:1], MASKS[0, :1]),
        11,
        '',
    ),
    'CARAFE': (
        lambda: mmcv.ops.CARAFE(3, 1, 2),
        (MAPS, torch.rand(2, 9, 24, 32, generator=DRAW)),
        11,
        '',
    ),
    'PSAMask': (
        lambda: mmcv.ops.PSAMask('collect', (3, 5)),
        (torch.rand(1, 15, 4, 6, generator=DRAW),),
        None,
        OPERATOR,
    ),
    'rotated_feature_align': (
        calls('rotated_feature_align', spatial_scale=0.25, points=1),
        (MAPS, torch.rand(2, 12, 16, 5, generator=DRAW) * 8),
        None,
        OPERATOR,
    ),
}
"""Case -> module, its inputs, the first opset of a right file or None, and a word of the refusal below it."""


def check(case, exporter, opset):
    make, inputs, first, word = TABLE[case]
    module = make().eval()
    if first is None or opset < first:
        with pytest.raises(ExportError, match=word):
            export_module(module, inputs, exporter=exporter, opset=opset)
        return
    model = export_module(module, inputs, exporter=exporter, opset=opset)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    got = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for array, reference in zip(got, expected, strict=True):
        largest = float(reference.abs().max()) if reference.numel() else 0.0
        np.testing.assert_allclose(array, reference.numpy(), rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize('opset', in_suite(OPSETS, 17))
@pytest.mark.parametrize('case', TABLE)
@pytest.mark.filterwarnings('ignore')
def test_an_operator_of_mmcv_is_exported_right_or_refused(case, opset):
    check(case, 'torchscript', opset)


OF_DYNAMO = (
    'RoIAlign',
    'RoIAlign, not aligned',
    'RoIAlign, maximum',
    'deform_conv',
    'nms_rotated',
    'point_sample',
)


@pytest.mark.matrix
@pytest.mark.parametrize('opset', [18, 20])
@pytest.mark.parametrize('case', OF_DYNAMO)
@pytest.mark.filterwarnings('ignore')
def test_an_operator_of_mmcv_is_exported_right_or_refused_by_dynamo(case, opset):
    check(case, 'dynamo', opset)
