"""tools/convert.py solo: names, fitting configs, and what it refuses."""

import re

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import solo_golden as golden
from marking import in_suite
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.base.errors import CheckpointError, ConfigError
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint
from mmdeploy_ext.upstream.weights.convert.solo import convert
from mmdeploy_ext.upstream.weights.convert.solo_config import check_config, check_head
from mmdeploy_ext.upstream.weights.convert.solo_names import converted_names, original_name
from model_shapes import model_shapes

TOY = 'configs/demo/solov2_toy.py'
NETS = {
    'solo_r50': 'solo/solo_r50_fpn_1x_coco.py',
    'decoupled_solo_r50': 'solo/decoupled_solo_r50_fpn_1x_coco.py',
    'decoupled_solo_light_r50': 'solo/decoupled_solo_light_r50_fpn_3x_coco.py',
    'solov2_r50': 'solov2/solov2_r50_fpn_1x_coco.py',
    'solov2_light_r34': 'solov2/solov2_light_r34_fpn_3x_coco.py',
    'solov2_light_dcn_r50': 'solov2/solov2_light_r50_dcn_fpn_3x_coco.py',
    'solov2_r101_dcn': 'solov2/solov2_r101_dcn_fpn_3x_coco.py',
}
"""Model of a golden -> config of mmdet."""


def toy_original(path, surplus=()):
    """Write a toy in the original's names."""
    shapes = model_shapes(load_config(TOY))
    names = {original_name(key): shape for key, shape in shapes.items()}
    return golden.write_original(path, names | dict(surplus))


@pytest.mark.parametrize(
    'name', in_suite(NETS, 'solo_r50', 'decoupled_solo_light_r50', 'solov2_light_dcn_r50')
)
def test_names_and_shapes_are_the_models_own(name):
    expected = golden.keys('mmdet', name)
    original = golden.keys('wxinlong', name)
    found = convert(golden.meta_checkpoint(original), load_config(mmdet_config(NETS[name])))
    assert {key: list(tensor.shape) for key, tensor in found.state_dict.items()} == expected
    assert list(found.state_dict) == list(expected)
    assert bool(found.changes) == (name == 'solov2_light_dcn_r50')


def test_both_spellings_of_the_offset_keys():
    original = golden.keys('wxinlong', 'solov2_light_dcn_r50')
    old = {re.sub(r'\.conv_offset\.(weight|bias)$', r'_offset.\1', key): key for key in original}
    assert sum(key != before for key, before in old.items()) >= 30
    new_names, old_names = converted_names(original), converted_names(list(old))
    assert {old_names[key]: before for key, before in old.items()} == {
        name: key for key, name in new_names.items()
    }


def test_values_and_facts_are_carried_over(tmp_path):
    source, target = toy_original(tmp_path / 'in.pth'), tmp_path / 'out.pth'
    assert golden.run_tool(source, target, '--config', TOY) == 0
    before, after = load_checkpoint(source), load_checkpoint(target)
    names = converted_names(before.state_dict)
    assert all(torch.equal(before.state_dict[key], after.state_dict[name]) for key, name in names.items())
    config = after.meta.pop('config')
    assert after.meta == dict(epoch=36, CLASSES=('a', 'b'))
    assert 'num_grids=[24, 20, 14, 10, 8]' in config  # SOLOv2's layers do not tell them
    # the original's towers have 32 groups, whatever a config says
    assert load_config(str(tmp_path / 'out.py')).model.mask_head.norm_cfg.num_groups == 32
    (tmp_path / 'out.py').write_text('mine = 1')
    assert golden.run_tool(source, target, '--config', TOY) == 2
    assert (tmp_path / 'out.py').read_text() == 'mine = 1'


@pytest.mark.parametrize(
    ('surplus', 'config', 'said'),
    [
        ({'neck.extra.weight': [4]}, TOY, 'unexpected keys 1 (neck.extra.weight)'),
        ({'bbox_head.solo_cate.bias': [80]}, TOY, '(80,) in the file, (6,) in the model'),
        ({'other.weight': [4]}, TOY, "['other.weight']"),
        ({}, 'configs/demo/decoupled_solo_toy.py', 'SOLOV2Head'),
        ({}, 'configs/demo/atss_toy.py', 'mask_head.type=None'),
    ],
)
def test_what_does_not_fit_is_refused_by_name(surplus, config, said, tmp_path, capsys):
    source = toy_original(tmp_path / 'in.pth', surplus)
    assert golden.run_tool(source, tmp_path / 'out.pth', '--config', config) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


@pytest.mark.parametrize(
    ('key', 'said'),
    [('bbox_head.atss_cls.weight', 'bbox_head.solo_*'), ('mask_head.conv_cls.weight', 'mask_head.*')],
)
def test_a_file_of_another_repository_is_refused(key, said, tmp_path, capsys):
    torch.save({key: torch.zeros(2)}, tmp_path / 'w.pth')
    assert golden.run_tool(tmp_path / 'w.pth', tmp_path / 'out.pth', '--config', TOY) == 2
    assert said in capsys.readouterr().err


def test_a_config_of_other_grids_or_without_a_resnet_is_refused():
    cfg = load_config(TOY)
    with pytest.raises(CheckpointError, match=r'\[1, 2\]'):
        check_head(cfg, 'SOLOV2Head', {}, 'num_grids=[1, 2]')
    del cfg.model.backbone['depth']
    with pytest.raises(ConfigError, match=r'model\.backbone\.depth'):
        check_config(cfg)
