"""Names and models of mmdet 3: what mmdet 3.3.0 itself built, recorded in `mmdet3_names.json`.

Recorded on the meta device from mmdet 3.3.0's own configs with fewer layers in their transformers; names
without those of the backbone, which are the same.
"""

import json
from pathlib import Path

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint
from mmdeploy_ext.upstream.weights.convert.mmdet3 import convert
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_name
from model_shapes import model_shapes

RECORDED = json.loads(Path(__file__).with_name('mmdet3_names.json').read_text())
SAME = ('atss', 'centernet')
"""Configs whose names are the same in both."""


def config_of(name):
    model = to_mmdet2_model(RECORDED[name]['model'])
    return Config(dict(model=model), cfg_text='model', filename='config2.py')


def weights_of(name):
    """Return a checkpoint with the names of mmdet 3, and tensors of its shapes."""
    own = model_shapes(config_of(name)).items()
    shapes = {key: shape for key, shape in own if key.startswith('backbone.')} | RECORDED[name]['names']
    tensors = {key: torch.zeros(tuple(shape)) for key, shape in shapes.items()}
    return Checkpoint('epoch_12.pth', tensors, {})


@pytest.mark.parametrize('name', RECORDED)
def test_every_name_of_mmdet_3_becomes_the_one_of_mmdet_2_with_its_shape(name):
    recorded = RECORDED[name]
    kind = recorded['model']['type']
    names = {to_mmdet2_name(key, kind): tuple(shape) for key, shape in recorded['names'].items()}
    own = model_shapes(config_of(name)).items()
    assert names == {key: shape for key, shape in own if not key.startswith('backbone.')}
    assert len(names) == len(recorded['names'])
    assert names
    assert (names.keys() == recorded['names'].keys()) == name.startswith(SAME)


def test_mean_and_std_of_a_data_preprocessor_are_no_weights():
    name = 'rpn/rpn_r50_fpn_1x_coco'
    source = weights_of(name)
    source.state_dict['data_preprocessor.mean'] = torch.ones(3, 1, 1)
    assert convert(source, config_of(name)).left_out == ['data_preprocessor.mean']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda weights: weights.pop('decoder.post_norm.bias'),
            r'missing keys 1 \(bbox_head\.transformer\.decoder\.post_norm\.bias',
        ),
        (
            lambda weights: weights.update({'encoder.x': torch.ones(1)}),
            r'unexpected keys 1 \(bbox_head\.transformer\.encoder\.x\)',
        ),
    ],
)
def test_a_key_that_is_not_accounted_for_is_refused(change, message):
    source = weights_of('detr/detr_r18_8xb2-500e_coco')
    change(source.state_dict)
    with pytest.raises(CheckpointError, match=rf'^epoch_12\.pth: .*{message}'):
        convert(source, config_of('detr/detr_r18_8xb2-500e_coco'))
