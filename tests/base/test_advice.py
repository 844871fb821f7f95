"""The advice of a refusal, typed on a config that gets it, leads to a model."""

import re
import shlex

import pytest
import torch

from mmdeploy_ext import api
from mmdeploy_ext.base.config import cfg_options, load_config, mmdet_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli import convert_app, export_app
from mmdeploy_ext.cli.options import parse_cfg_options
from mmdeploy_ext.families.detector import load
from mmdeploy_ext.upstream.weights.convert.mmdet3_config import (
    NO_BASE,
    NO_MODEL,
    NO_PIPELINE,
    OTHER_PACKAGE,
    REFUSED,
    SCRIPTS,
)
from refusals import CHECKPOINT, CONFIG, refused
from toy_atss import REPO

MASKS, PANOPTIC = (REPO / f'configs/demo/{name}_toy.py' for name in ('mask_rcnn', 'panoptic_fpn'))


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


STEPS3 = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 128)), dict(type='PackDetInputs')]
LOADER3 = f'test_dataloader = dict(dataset=dict(pipeline={STEPS3!r}))\n'


def checked(path, *words) -> None:
    """Do what `export --check` does to a config that is not refused."""
    request = api.ExportRequest(str(path), '', '', cfg_options=parse_cfg_options(words), options={})
    detector = api.read_detector(request)
    api.built(detector, api.chosen_options(detector, request), request)


def of_mmdet3(**parts) -> str:
    model = load_config(str(CONFIG)).model.to_dict()
    preprocessor = dict(type='DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    return f'model = {dict(model, data_preprocessor=preprocessor, **parts)!r}\n'


def set_in(case, line):
    case.config.write_text(case.config.read_text() + line)
    return case.config


def written_beside(case, text):
    (case.folder / 'missing.py').write_text(text)
    return case.config


def based_on(case, text):
    path = case.folder / 'whole.py'
    path.write_text(f"_base_ = './{case.config.name}'\n{text}")
    return path


TEXTS = {
    **{
        kind: [
            *(of_mmdet3(type=name) for name in names if name != 'TIMMBackbone'),
            *(of_mmdet3(backbone=dict(type=name)) for name in names if name == 'TIMMBackbone'),
        ]
        for kind, (_, names) in REFUSED.items()
    },
    NO_MODEL: [LOADER3],
    OTHER_PACKAGE: [f"_base_ = '{name}::resnet/resnet50.py'\n" for name in ('mmpretrain', 'mmcls')],
    SCRIPTS: ["if __name__ == '__main__':\n    print(1)\n"],
    NO_BASE: ["_base_ = './missing.py'\n" + LOADER3],
    NO_PIPELINE: [of_mmdet3()],
}
WAYS = {
    NO_MODEL: lambda case: based_on(case, of_mmdet3()),
    SCRIPTS: lambda case: set_in(case, of_mmdet3() + LOADER3),
    NO_BASE: lambda case: written_beside(case, of_mmdet3()),
    NO_PIPELINE: lambda case: set_in(case, LOADER3),
}
"""What a user does who follows the message; the others are told to export the module themselves."""


@pytest.mark.parametrize('kind', REFUSED)
def test_a_refused_kind_of_config_of_mmdet_3_says_what_leads_to_a_file(case, kind):
    assert TEXTS[kind]
    for text in TEXTS[kind]:
        case.config.write_text(text)
        with pytest.raises(ConfigError, match=None if kind in WAYS else 'docs/any-module.md'):
            checked(case.config)
        if kind in WAYS:
            checked(WAYS[kind](case))


STEP = 'data.test.pipeline.1'
OVERRIDES = {
    'flips': (CONFIG, {f'{STEP}.flip': True}),
    'scales': (CONFIG, {f'{STEP}.img_scale': [(128, 128), (96, 96)]}),
    'type of NMS': (CONFIG, "model = dict(test_cfg=dict(nms=dict(type='nms_match')))\n"),
    'argument of NMS': (CONFIG, 'model = dict(test_cfg=dict(nms=dict(split=3)))\n'),
    'coder': (
        MASKS,
        "model = dict(rpn_head=dict(bbox_coder=dict(_delete_=True, type='YOLOBBoxCoder')))\n",
    ),
    'masks of a map': (PANOPTIC, 'model = dict(test_cfg=dict(panoptic=dict(mask_thr_binary=-1)))\n'),
}


@pytest.mark.parametrize('setting', OVERRIDES)
def test_the_override_that_a_refusal_names_leads_to_a_file(case, setting):
    config, change = OVERRIDES[setting]
    lines = change if isinstance(change, str) else ''
    case.config.write_text(f'_base_ = {str(config)!r}\n{lines}')
    given = [] if lines else shlex.split(cfg_options(change))[1:]
    with pytest.raises(ConfigError) as error:
        checked(case.config, *given)
    (advice,) = re.findall(r'--cfg-options (.*?)(?: tries|; its test path|$)', str(error.value))
    checked(case.config, *given, *shlex.split(advice))
