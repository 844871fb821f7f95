"""Pure-Python configs of mmengine: their values without mmengine, and bad input named by file and line."""

import re

import pytest

from mmdeploy_ext.base.config import is_config3, read_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.weights.convert.mmdet3_config import read_mmdet3_config
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import without_scope

MODEL = """
from mmdet.models import RetinaNet, ResNet as Layers
from torch.nn import BatchNorm2d
from mmengine.model.weight_init import PretrainedInit
depth = 50
norm = dict(type=BatchNorm2d, requires_grad=True)
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(mean=[1.0]),
    backbone=dict(type=Layers, depth=depth, norm_cfg=norm, init_cfg=dict(type=PretrainedInit)),
    neck=dict(type='FPN', start=1, stop=2),
)
"""
DATA = "steps = [dict(type='Pad')]\ntest_dataloader = dict(dataset=dict(pipeline=steps))\n"
CHILD = """
import os
from mmengine.config import read_base
with read_base():
    from .._base_.model import *
    from .._base_.data import steps as test_pipeline
model.update(dict(backbone=dict(depth=depth + 51)))
model.merge(dict(neck=dict(_delete_=True, type='PAFPN'), train_cfg=None))
name = os.path.join('a', 'b')
"""


def written(folder, **texts):
    for name, text in texts.items():
        path = folder / ('_base_' if name != 'child' else 'kind') / f'{name}.py'
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder / 'kind' / 'child.py'


@pytest.mark.parametrize('block', ['with read_base():', "if '_base_':"])
def test_bases_are_changed_as_by_mmengine_and_classes_are_names(tmp_path, block):
    path = written(tmp_path, model=MODEL, data=DATA, child=CHILD.replace('with read_base():', block))
    cfg = read_config(str(path))
    assert is_config3(cfg) and set(cfg.keys()) == {'depth', 'norm', 'model', 'test_pipeline', 'name'}
    model = without_scope(cfg.model.to_dict())
    assert model == dict(
        type='RetinaNet',
        data_preprocessor=dict(mean=[1.0]),
        backbone=dict(
            type='ResNet',
            depth=101,
            norm_cfg=dict(type='BN', requires_grad=True),
            init_cfg=dict(type='Pretrained'),
        ),
        neck=dict(type='PAFPN'),
        train_cfg=None,
    )


@pytest.mark.parametrize(
    ('child', 'place'),
    [
        (CHILD.replace('.model import', '.modell import'), 'child.py:5'),
        (CHILD.replace('steps as', 'stages as'), 'child.py:6'),
        (CHILD + 'model.merge(dict(depth=width))\n', 'child.py:10'),
        (CHILD + 'from mmdet.models import *\n', 'child.py:10'),
        (CHILD + 'from .other import x\n', 'child.py:10'),
        (CHILD + 'import mmdet.models\n', 'child.py:10'),
        (CHILD + "_base_ = './a.py'\n", 'child.py:10'),
        (CHILD + 'model = [\n', 'child.py, line 10'),
        (CHILD.replace('.model', '.broken'), 'broken.py, line 1'),
    ],
)
def test_what_mmengine_does_not_read_is_named_by_file_and_line(tmp_path, child, place):
    path = written(tmp_path, model=MODEL, data=DATA, child=child, broken='model = [')
    with pytest.raises(ConfigError, match=re.escape(place)) as error:
        read_mmdet3_config(path)
    assert '\n' not in str(error.value)
