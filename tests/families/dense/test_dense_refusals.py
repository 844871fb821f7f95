"""One-stage detectors that do not export are refused by the part; a user's own head is named, not refused."""

import sys

import pytest

from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.proving.open_points import untraced_methods
from refusals import REPOSITORY

RETINA, YOLOX = (f"_base_ = ['{REPOSITORY}/configs/demo/{name}_toy.py']\n" for name in ('retinanet', 'yolox'))
CENTERNET = f"_base_ = ['{mmdet_config('centernet/centernet_resnet18_140e_coco.py')}']\n"
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


def test_a_size_that_the_neck_does_not_take_is_refused(tmp_path):
    (tmp_path / 'bad.py').write_text(YOLOX)
    cfg = load_config(str(tmp_path / 'bad.py'))
    family = find_family(cfg)
    with pytest.raises(UsageError, match=r'YOLOXPAFPN.*32'):
        family.spec(family.build(cfg), family.choose(opset=17, height=100, width=96))


@pytest.mark.parametrize(
    ('text', 'method'),
    [
        (RETINA + head("type='RetinaOfAUser'"), 'RetinaOfAUser.get_bboxes'),
        (YOLOX + head("type='YoloxOfAUser'"), 'YoloxOfAUser._bboxes_nms'),
        (CENTERNET + head("type='CentersOfAUser'"), 'CentersOfAUser.decode_heatmap'),
    ],
)
def test_a_method_of_the_users_own_head_is_named_and_not_refused(text, method, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'heads_of_a_user', raising=False)
    (tmp_path / 'heads_of_a_user.py').write_text(HEADS_OF_A_USER)
    (tmp_path / 'a.py').write_text(f"{text}custom_imports = dict(imports=['heads_of_a_user'])\n")
    cfg = load_config(str(tmp_path / 'a.py'))
    family = find_family(cfg)
    family.check(cfg, family.choose(opset=17, height=128, width=160))
    found = untraced_methods(family, family.build(cfg), cfg)
    assert method in [entry.subject.partition(' ')[0] for entry in found]


def test_a_head_that_needs_its_train_cfg_to_be_built_gets_it(tmp_path):
    from mmdet.models.builder import HEADS
    from mmdet.models.dense_heads import RetinaHead

    @HEADS.register_module(force=True)
    class HeadOfDistillation(RetinaHead):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.weight = self.train_cfg.kd_assigner.weight

    (tmp_path / 'user.py').write_text(
        RETINA
        + head("type='HeadOfDistillation'")
        + 'model.update(train_cfg=dict(kd_assigner=dict(weight=1)))\n'
    )
    cfg = load_config(str(tmp_path / 'user.py'))
    family = find_family(cfg)
    family.check(cfg, family.choose(height=128, width=128, opset=17))


def test_a_copy_of_a_dense_head_hears_how_to_try_the_original(tmp_path):
    from mmdet.models.builder import HEADS
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    content = {name: value for name, value in vars(YOLOXHead).items() if not name.startswith('__')}

    def build(self, num_classes, **settings):
        BaseDenseHead.__init__(self)

    shared = type('SharedHead', (BaseDenseHead,), {**content, '__init__': build})
    HEADS.register_module(module=shared, force=True)
    (tmp_path / 'user.py').write_text(YOLOX + head("type='SharedHead'"))
    cfg = load_config(str(tmp_path / 'user.py'))
    family = find_family(cfg)
    with pytest.raises(UsageError, match=r'model\.bbox_head\.type=YOLOXHead'):
        family.check(cfg, family.choose(height=128, width=128, opset=17))
