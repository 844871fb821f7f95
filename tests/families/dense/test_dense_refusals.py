"""One-stage detectors that do not export are refused by the part; a user's own head is named, not refused."""

import pytest
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import RetinaHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.proving.not_shown import untraced_methods
from refusals import REPOSITORY

RETINA, YOLOX = (f"_base_ = ['{REPOSITORY}/configs/demo/{name}_toy.py']\n" for name in ('retinanet', 'yolox'))
HEAD_OF_A_USER = """
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import YOLOXHead

@HEADS.register_module(force=True)
class YoloxOfAUser(YOLOXHead):
    def _bboxes_nms(self, *args, **kwargs):
        return super()._bboxes_nms(*args, **kwargs)
"""


def head(text):
    return f'model = dict(bbox_head=dict({text}))\n'


def read(folder, content):
    """Return the config of a user, and its family."""
    (folder / 'user.py').write_text(content)
    cfg = load_config(str(folder / 'user.py'))
    return cfg, find_family(cfg)


def test_a_size_that_the_neck_does_not_take_is_refused(tmp_path):
    cfg, family = read(tmp_path, YOLOX)
    with pytest.raises(UsageError, match=r'YOLOXPAFPN.*32'):
        family.check(cfg, family.choose(opset=17, height=100, width=96))


def test_a_selection_of_the_users_own_is_named_and_refused_but_for_raw_outputs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'head_of_a_user.py').write_text(HEAD_OF_A_USER)
    imported = "custom_imports = dict(imports=['head_of_a_user'])\n"
    cfg, family = read(tmp_path, YOLOX + head("type='YoloxOfAUser'") + imported)
    with pytest.raises(ConfigError, match=r'YoloxOfAUser\._bboxes_nms'):
        family.check(cfg, family.choose(opset=17, height=128, width=160))
    family.check(cfg, family.choose(opset=17, height=128, width=160, form='raw'))
    found = untraced_methods(family, family.build(cfg), cfg)
    assert 'YoloxOfAUser._bboxes_nms' in [entry.subject.partition(' ')[0] for entry in found]


def test_a_head_that_needs_its_train_cfg_to_be_built_gets_it(tmp_path):
    @HEADS.register_module(force=True)
    class HeadOfDistillation(RetinaHead):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.weight = self.train_cfg.kd_assigner.weight

    settings = 'model.update(train_cfg=dict(kd_assigner=dict(weight=1)))\n'
    cfg, family = read(tmp_path, RETINA + head("type='HeadOfDistillation'") + settings)
    family.check(cfg, family.choose(height=128, width=128, opset=17))


def test_a_copy_of_a_dense_head_hears_how_to_try_the_original(tmp_path):
    content = {name: value for name, value in vars(YOLOXHead).items() if not name.startswith('__')}

    def build(self, num_classes, **settings):
        BaseDenseHead.__init__(self)

    shared = type('SharedHead', (BaseDenseHead,), {**content, '__init__': build})
    HEADS.register_module(module=shared, force=True)
    cfg, family = read(tmp_path, YOLOX + head("type='SharedHead'"))
    with pytest.raises(UsageError, match=r'model\.bbox_head\.type=YOLOXHead'):
        family.check(cfg, family.choose(height=128, width=128, opset=17))


def test_of_a_distilled_detector_the_student_alone_is_built(tmp_path):
    distilled = 'KnowledgeDistillationSingleStageDetector'
    cfg, family = read(tmp_path, RETINA + f"model = dict(type='{distilled}', teacher_config='none.py')\n")
    family.check(cfg, family.choose(height=128, width=128, opset=17))
    assert type(family.build(cfg)).__name__ == 'SingleStageDetector'
    assert cfg.model.type == distilled and cfg.model.teacher_config == 'none.py'
