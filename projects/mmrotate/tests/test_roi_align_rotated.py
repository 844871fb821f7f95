"""Rotated regions pooled in standard operators against mmcv's CPU kernel, rounding included."""

import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlignRotated

from mm2onnx_mmrotate.two_stage.roi_align_rotated import pool_rotated
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.upstream.operators.operator import operators_as
from toy_graphs import run_file

STRIDES = (4, 8, 16)
REGION_AXES = dict(boxes={0: 'R'}, images={0: 'R'}, levels={0: 'R'}) | {
    f'map_{level}': {0: 'B', 2: f'h{level}', 3: f'w{level}'} for level in range(len(STRIDES))
}


class Pooled(torch.nn.Module):
    def __init__(self, ratio, aligned, clockwise):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            RoIAlignRotated((7, 5), 1 / stride, ratio, aligned, clockwise) for stride in STRIDES
        )

    def forward(self, boxes, images, levels, *maps):
        return pool_rotated(maps, boxes, images, levels, self.layers)

    def by_mmcv(self, boxes, images, levels, *maps):
        pooled = torch.zeros(len(boxes), maps[0].shape[1], 7, 5)
        for level, (layer, level_map) in enumerate(zip(self.layers, maps, strict=True)):
            rows = torch.nonzero(levels == level).squeeze(1)
            if len(rows):
                regions = torch.cat([images[rows, None].float(), boxes[rows]], 1)
                pooled[rows] = layer(level_map, regions)
        return pooled


def regions(count, height, width, batch, seed):
    """Return regions, some of which reach beyond the maps, and maps of three levels."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, 5, height // s, width // s, generator=generator) for s in STRIDES]
    centres = torch.rand(count, 2, generator=generator) * 1.2 * max(height, width) - 10
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 5)
    angles = (torch.rand(count, 1, generator=generator) - 0.5) * 7
    images = torch.randint(batch, (count,), generator=generator)
    levels = torch.randint(len(STRIDES), (count,), generator=generator)
    return torch.cat([centres, sides, angles], 1), images, levels, *maps


REGION_CASES = [(2, True, True, 'torchscript')] + [
    pytest.param(*case, marks=pytest.mark.matrix)
    for case in (
        (2, True, True, 'dynamo'),
        (2, True, False, 'torchscript'),
        (2, False, True, 'torchscript'),
        (0, True, True, 'torchscript'),
        (0, False, False, 'torchscript'),
        (3, True, True, 'torchscript'),
    )
]


@pytest.mark.parametrize('ratio, aligned, clockwise, exporter', REGION_CASES)
def test_exported_rotated_regions_are_mmcvs_to_the_bit(ratio, aligned, clockwise, exporter):
    module = Pooled(ratio, aligned, clockwise).eval()
    with operators_as('standard'):
        model = export_module(
            module,
            regions(6, 64, 96, 2, 0),
            exporter=exporter,
            opset=18,
            input_names=tuple(REGION_AXES),
            output_names=('pooled',),
            dynamic=REGION_AXES,
        )
    for count, height, width, batch in ((50, 64, 96, 2), (0, 32, 32, 1), (200, 128, 64, 3)):
        tensors = regions(count, height, width, batch, count)
        wanted = module.by_mmcv(*tensors).numpy()
        (pooled,) = run_file(model, [tensor.numpy() for tensor in tensors], tuple(REGION_AXES))
        np.testing.assert_array_equal(pooled, wanted)
        np.testing.assert_array_equal(module(*tensors).numpy(), wanted)


@pytest.mark.parametrize('ratio', [0, 1, 2, 3])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('clockwise', [True, False])
def test_the_eager_rotated_regions_are_mmcvs_to_the_bit(ratio, aligned, clockwise):
    module, tensors = Pooled(ratio, aligned, clockwise), regions(60, 64, 96, 2, 7)
    np.testing.assert_array_equal(module(*tensors).numpy(), module.by_mmcv(*tensors).numpy())
