"""Regions of one level: the ONNX form against mmcv's kernel, and against sampling written out."""

import mmcv.ops
import numpy as np
import onnxruntime
import pytest
import torch

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graphs.io.index import all_nodes
from mmdeploy_ext.upstream.operators.roi_align import check_layer, pool_level

BOXES = [[0, 0, 31, 17], [3.3, 5.1, 60, 44], [10, 10, 10, 10], [-8, -8, 90, 80], [5, 5, 6, 7]]


class Levels(torch.nn.Module):
    def __init__(self, layers, constant):
        super().__init__()
        self.layers, self.constant = layers, constant

    def forward(self, first, second, boxes, images, levels):
        pooled = first.new_zeros(boxes.shape[0], first.shape[1], *self.layers[0].output_size)
        for level, maps in enumerate((first, second)):
            pooled = pool_level(pooled, maps, boxes, images, levels, level, self.layers[level], self.constant)
        return pooled


def inputs(levels, batch=2):
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(batch, 3, *size, generator=draw) for size in ((16, 20), (8, 10))]
    boxes = torch.tensor(BOXES)[: len(levels)]
    return *maps, boxes, torch.arange(len(levels)) % batch, torch.tensor(levels, dtype=torch.int64)


@pytest.mark.parametrize(
    ('ratio', 'aligned', 'constant'), [(0, True, False), (2, False, True), (2, True, True)]
)
@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_regions_are_pooled_on_their_own_level_alone_and_stay_in_order(ratio, aligned, constant, exporter):
    layers = [mmcv.ops.RoIAlign((3, 5), scale, ratio, 'avg', aligned) for scale in (0.25, 0.125)]
    module = Levels(layers, constant)
    axes = {'boxes': {0: 'R'}, 'images': {0: 'R'}, 'levels': {0: 'R'}}
    model = export_module(
        module,
        inputs([0, 1, 1, 0, 1]),
        exporter=exporter,
        input_names=('first', 'second', 'boxes', 'images', 'levels'),
        output_names=('pooled',),
        dynamic=axes,
    )
    assert ('NonZero' in {node.op_type for node in all_nodes(model)}) != constant
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    for levels in ([1, 0, 0, 1, 1], [0, 0, 0], [1], []):
        given = inputs(levels)
        named = dict(zip(('first', 'second', 'boxes', 'images', 'levels'), given, strict=True))
        (found,) = session.run(None, {name: value.numpy() for name, value in named.items()})
        assert torch.equal(torch.from_numpy(found), module(*given))
        for row, level in enumerate(levels):
            region = torch.cat([given[3][row : row + 1, None].float(), given[2][row : row + 1]], 1)
            wanted = layers[level](given[level], region)
            np.testing.assert_array_equal(found[row], wanted[0].numpy())


def test_a_layer_that_the_operator_does_not_compute_is_refused():
    for layer, said in (
        (mmcv.ops.RoIAlign(7, 0.25, 0, 'max'), "pool_mode='max'"),
        (mmcv.ops.RoIPool(7, 0.25), 'roi_layer.type=RoIPool'),
    ):
        with pytest.raises(ConfigError, match=said):
            check_layer(layer)


def test_regions_of_an_image_that_is_not_there_are_refused():
    with pytest.raises(IndexError, match='RoIAlign'):
        mmcv.ops.RoIAlign(2, 1.0, 2)(torch.ones(1, 1, 4, 4), torch.tensor([[7.0, 0, 0, 2, 2]]))
