"""The advice of a refusal, typed on a config that gets it, leads to a model."""

import re
import shlex

import pytest
import torch

from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.cli import convert_app, export_app
from mmdeploy_ext.cli.options import parse_cfg_options
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.detector import load
from refusals import CHECKPOINT, CONFIG, refused
from toy_atss import REPO


class Refused:
    """A config that `export` refuses."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys, self.config = folder, capsys, folder / 'refused.py'

    def advice(self, text, *words, status=2):
        """The words behind `convert` or --cfg-options in the message of `export`."""
        self.config.write_text(text)
        words = [self.config, *words, '--check']
        self.message = refused(self.capsys, export_app.main, *words, status=status)
        found = re.search(r'`[^`]*(mmdet3 [^`]*)`|--cfg-options ([^;]*)', self.message)
        return shlex.split(found[1] or found[2]) if found else []


@pytest.fixture
def case(tmp_path, capsys):
    return Refused(tmp_path, capsys)


def test_a_base_of_another_package_is_written_from_the_checkpoint_of_the_training(case):
    cfg = load_config(str(CONFIG))
    preprocessor = dict(type='DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')]
    model = dict(cfg.model.to_dict(), data_preprocessor=preprocessor)
    text = f'model = {model!r}\ntest_dataloader = dict(dataset=dict(pipeline={steps!r}))\n'
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(cfg=text)), case.folder / 'epoch_1.pth')
    words = case.advice("_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'\n")
    assert 'mmpretrain' not in case.message
    places = {'CHECKPOINT': case.folder / 'epoch_1.pth', 'CONFIG.py': case.folder / 'whole.py'}
    assert convert_app.main([str(places.get(word, word)) for word in words]) == 0
    assert load_config(str(case.folder / 'whole.py')).model.type == 'ATSS'


def test_a_dict_for_the_heads_of_a_cascade_is_set_in_each(case):
    base = mmdet_config('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py')
    start = f'_base_ = {base!r}\n'
    words = case.advice(start + 'model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))\n')
    case.config.write_text(start)
    cfg = load_config(str(case.config), parse_cfg_options(words))
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3, 3, 3]


def test_the_config_of_a_trackers_detector_takes_the_trackers_checkpoint(case):
    cfg = load_config(str(CONFIG))
    tracker = dict(type='DeepSORT', detector=cfg.model.to_dict(), tracker=dict(type='SortTracker'))
    rest = f'data = {cfg.data.to_dict()!r}\n'
    assert not case.advice(f'model = {tracker!r}\n{rest}')
    assert 'ATSS' in case.message and '--parts' not in case.message
    state = torch.load(CHECKPOINT, weights_only=False)['state_dict']
    torch.save(dict(state_dict={f'detector.{key}': state[key] for key in state}), case.folder / 't.pth')
    case.config.write_text(f'model = {cfg.model.to_dict()!r}\n{rest}')
    load(str(case.config), str(case.folder / 't.pth'))


def test_masks_of_0_to_255_are_exported_with_a_threshold(case):
    text = f"_base_ = '{REPO}/configs/demo/mask_rcnn_toy.py'\n"
    words = case.advice(text, '--cfg-options', 'model.test_cfg.rcnn.mask_thr_binary=-1', status=1)
    cfg = load_config(str(case.config), parse_cfg_options(words))
    family = find_family(cfg)
    assert cfg.model.test_cfg.rcnn.mask_thr_binary == 0.5 and family.name == 'two_stage'
