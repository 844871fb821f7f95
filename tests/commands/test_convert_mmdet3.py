"""`tools/convert.py mmdet3`: a config and a checkpoint of mmdet 3 become those of mmdet 2.28."""

import json
import pprint
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.weights.checkpoint import load_checkpoint
from mmdeploy_ext.weights.convert.mmdet3_names import to_mmdet2_name
from model_shapes import model_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDED = json.loads((REPOSITORY / 'tests/weights/mmdet3_names.json').read_text())
DETR = RECORDED['detr/detr_r18_8xb2-500e_coco']
PIPELINE = """
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root='data/coco/', ann_file='val.json', data_prefix=dict(img='val/'),
    metainfo=dict(classes=('a', 'b')), pipeline=test_pipeline))
"""


def run_tool(*words):
    before = list(sys.path)
    try:
        main = runpy.run_path(str(REPOSITORY / 'tools/convert.py'))['main']
        return main(['mmdet3', *(str(word) for word in words)])
    finally:
        sys.path[:] = before


@pytest.fixture
def config3(tmp_path):
    path = tmp_path / 'detr3.py'
    path.write_text(f'model = {pprint.pformat(DETR["model"])}\n{PIPELINE}')
    return path


def write_checkpoint(path, config, **changes):
    """Write what mmengine's Runner does for the DETR of a translated config, tensors of ones."""
    backbone = {key: shape for key, shape in model_shapes(config).items() if key.startswith('backbone.')}
    weights = {key: torch.ones(tuple(shape)) for key, shape in {**backbone, **DETR['names']}.items()}
    meta = dict(epoch=12, mmengine_version='0.10.7', dataset_meta=dict(classes=('a', 'b')))
    torch.save(dict(meta=meta, state_dict={**weights, **changes}, message_hub={}), path)
    return weights


def test_a_config_and_then_its_checkpoint_are_converted(config3, tmp_path, capsys):
    config, source, target = tmp_path / 'detr2.py', tmp_path / 'epoch_12.pth', tmp_path / 'detr2.pth'
    assert run_tool(config3, config) == 0
    assert capsys.readouterr().out.startswith(f'{config}: a config of mmdet 2.28')
    cfg = load_config(str(config))
    assert cfg.data.test.classes == ('a', 'b') and cfg.data.test.ann_file == 'data/coco/val.json'
    weights = write_checkpoint(source, cfg)
    assert run_tool(source, target, '--config', config) == 0
    assert f'{len(weights)} tensors' in capsys.readouterr().out
    loaded = load_checkpoint(target)
    assert loaded.state_dict.keys() == {to_mmdet2_name(key, 'DETR') for key in weights}
    assert loaded.meta == dict(epoch=12, mmengine_version='0.10.7', CLASSES=('a', 'b'))
    assert run_tool(source, target, '--config', config3) == 2
    assert str(config3) in capsys.readouterr().err
    assert run_tool(source, target) == 2
    assert '--config' in capsys.readouterr().err


def test_a_config_of_mmdet_3_is_refused_by_every_tool_with_the_command(config3):
    with pytest.raises(ConfigError, match=rf'tools/convert\.py mmdet3 {config3}'):
        load_config(str(config3))
