"""Configs of one-stage detectors that do not export: each is refused in one line that names the part."""

import sys
from pathlib import Path

import pytest

from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.proving.open_points import untraced_methods

REPOSITORY = Path(__file__).resolve().parents[2]
RETINA, YOLOX = (f"_base_ = ['{REPOSITORY}/configs/demo/{name}_toy.py']\n" for name in ('retinanet', 'yolox'))
CENTERNET = f"_base_ = ['{mmdet_config('centernet/centernet_resnet18_140e_coco.py')}']\n"
OWN = "custom_imports = dict(imports=['heads_of_a_user'], allow_failed_imports=False)\n"
HEADS_OF_A_USER = """
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import CenterNetHead, RetinaHead, YOLOXHead

@HEADS.register_module(force=True)
class RetinaOfAUser(RetinaHead):
    def get_bboxes(self, *args, **kwargs):
        return super().get_bboxes(*args, **kwargs)

@HEADS.register_module(force=True)
class YoloxOfAUser(YOLOXHead):
    def _bboxes_nms(self, *args, **kwargs):
        return super()._bboxes_nms(*args, **kwargs)

@HEADS.register_module(force=True)
class CentersOfAUser(CenterNetHead):
    def decode_heatmap(self, *args, **kwargs):
        return super().decode_heatmap(*args, **kwargs)
"""


def head(text):
    return f'model = dict(bbox_head=dict({text}))\n'


def test_cfg(**values):
    return f'model = dict(test_cfg=dict(_delete_=True, **{values}))\n'


test_cfg.__test__ = False
NMS = dict(type='nms', iou_threshold=0.5)
CASES = {
    'a head of no kind': (
        RETINA + head("_delete_=True, type='CornerHead', in_channels=64, num_classes=6"),
        ['bad.py: CornerHead.get_bboxes (', 'of no kind of dense head', 'docs/own-family.md'],
    ),
    'a head of another family': (
        RETINA + head("_delete_=True, type='YOLACTHead', in_channels=64, num_classes=6"),
        ['bad.py: YOLACTHead.get_bboxes (', 'raises TypeError', 'docs/own-family.md'],
    ),
    'another suppression': (
        RETINA + "model = dict(test_cfg=dict(nms=dict(type='soft_nms')))\n",
        ["test_cfg.nms.type='soft_nms'", "expected 'nms'"],
    ),
    'a part for multiples': (
        YOLOX,
        ['--shape 100 96: YOLOXPAFPN takes sizes that are multiples of 32'],
        '--shape 100 96',
    ),
    'smaller than a stride': (
        RETINA,
        ['--shape 64 64: each side has to be at least the largest stride of the model, 128 pixels'],
        '--shape 64',
    ),
    'no test_cfg': (RETINA + 'model = dict(test_cfg=None)\n', ['has no score_thr, nms, max_per_img']),
    'no nms': (
        RETINA + test_cfg(score_thr=0.05, max_per_img=100, nms_pre=1000),
        ['bad.py: model.test_cfg has no nms, which RetinaHead reads; expected score_thr, nms, max_per_img'],
    ),
    'no score_thr': (
        RETINA + test_cfg(nms=NMS, max_per_img=100),
        ['bad.py: model.test_cfg has no score_thr, which RetinaHead reads'],
    ),
    'no max_per_img': (
        RETINA + test_cfg(nms=NMS, score_thr=0.05),
        ['bad.py: model.test_cfg has no max_per_img, which RetinaHead reads'],
    ),
    'no score_thr, where there is no limit': (
        YOLOX + test_cfg(nms=NMS),
        ['bad.py: model.test_cfg has no score_thr, which YOLOXHead reads; expected score_thr, nms'],
    ),
    'no topk': (
        CENTERNET + test_cfg(local_maximum_kernel=3),
        ['bad.py: model.test_cfg has no topk, which CenterNetHead reads'],
    ),
    'peaks in an even square': (
        CENTERNET + test_cfg(local_maximum_kernel=4, topk=100),
        ['bad.py: test_cfg.local_maximum_kernel=4: expected an odd number'],
    ),
    'flipped pictures': (
        CENTERNET + "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict("
        "type='MultiScaleFlipAug', scale_factor=1.0, flip=True, transforms=[])]))\n",
        ['test pipeline step MultiScaleFlipAug: flip=True', '--cfg-options data.test.pipeline.1.flip=False'],
    ),
}


@pytest.fixture
def never_loads(monkeypatch):
    """Fail where a checkpoint is read."""
    from mmdeploy_ext.weights import checkpoint

    def fail(path):
        raise AssertionError(f'{path} was read')

    monkeypatch.setattr(checkpoint, 'read_content', fail)


def refuse(bench, monkeypatch, content, words, more='', **options):
    monkeypatch.syspath_prepend(str(bench.folder))
    (bench.folder / 'heads_of_a_user.py').write_text(HEADS_OF_A_USER)
    monkeypatch.delitem(sys.modules, 'heads_of_a_user', raising=False)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    path = bench.folder / 'bad.py'
    path.write_text(content)
    bench.refuses('export', *words, config=path, more=more, **options)


@pytest.mark.parametrize('case', CASES)
def test_what_is_not_exported_is_named_before_the_weights_load(case, bench, monkeypatch, never_loads):
    refuse(bench, monkeypatch, *CASES[case])


@pytest.mark.parametrize(
    ('text', 'method'),
    [
        (RETINA + OWN + head("type='RetinaOfAUser'"), 'RetinaOfAUser.get_bboxes'),
        (YOLOX + OWN + head("type='YoloxOfAUser'"), 'YoloxOfAUser._bboxes_nms'),
        (CENTERNET + OWN + head("type='CentersOfAUser'"), 'CentersOfAUser.decode_heatmap'),
    ],
)
def test_a_method_of_the_user_s_own_head_is_named_and_not_refused(text, method, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'heads_of_a_user', raising=False)
    (tmp_path / 'heads_of_a_user.py').write_text(HEADS_OF_A_USER)
    (tmp_path / 'a.py').write_text(text)
    cfg = load_config(str(tmp_path / 'a.py'))
    family = find_family(cfg)
    family.check(cfg, family.choose(opset=17, height=128, width=160))
    found = untraced_methods(family, family.build(cfg), cfg)
    assert method in [entry.subject.partition(' ')[0] for entry in found]


UNLIKE = {
    'classes': (
        RETINA + head('num_classes=7'),
        'retinanet',
        'retina_cls',
        '(36,) in the file, (42,) in the model',
    ),
    'classes of levels': (
        YOLOX + head('num_classes=7'),
        'yolox',
        'multi_level_conv_cls',
        '(6,) in the file, (7,) in',
    ),
    'anchors': (
        RETINA + head('anchor_generator=dict(ratios=[1.0])'),
        *('retinanet', 'retina_reg', '(24,) in the file, (8,) in the model'),
    ),
}


@pytest.mark.parametrize('case', UNLIKE)
def test_a_checkpoint_of_another_head_is_refused_by_the_layer(case, bench, monkeypatch):
    content, toy, *words = UNLIKE[case]
    checkpoint = REPOSITORY / f'demo/checkpoints/{toy}_toy.pth'
    refuse(bench, monkeypatch, content, [f'{toy}_toy.pth: does not fit', *words], checkpoint=checkpoint)
