"""A model of pictures is run once before its weights load: its own faults are named, and other tensors."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES, HEADS
from mmdet.models.dense_heads import ATSSHead

from mmdeploy_ext.cli import export_app, parts_app
from toy_atss import REPO

TOY = f"_base_ = ['{REPO}/configs/demo/atss_toy.py']\n"
NARROW_NECK = TOY + 'model = dict(neck=dict(in_channels=[32, 64, 64]))\n'


@HEADS.register_module()
class HeadOfEightChannels(ATSSHead):
    def forward(self, feats):
        scores, boxes, quality = super().forward(feats)
        return scores, [torch.cat([level, level], 1) for level in boxes], quality


@HEADS.register_module()
class HeadWithKeypoints(ATSSHead):
    def forward(self, feats):
        scores, boxes, quality = super().forward(feats)
        return scores, boxes, quality, boxes

    def get_bboxes(self, scores, boxes, quality, keypoints, **settings):
        assert len(keypoints)
        return super().get_bboxes(scores, boxes, quality, **settings)


@HEADS.register_module()
class HeadOfUntrainedRegions(ATSSHead):
    def forward(self, feats):
        raise RuntimeError('roi_width >= 0 INTERNAL ASSERT FAILED at "roi_align.cpp":138')


@BACKBONES.register_module()
class BackboneOfOneSize(ResNet):
    def forward(self, picture):
        assert picture.shape[2:] == (160, 160)
        return super().forward(picture)


@BACKBONES.register_module()
class BackboneOfFrequencies(ResNet):
    def forward(self, picture):
        return super().forward(picture + torch.fft.rfft2(picture).real.mean())


@pytest.fixture(autouse=True)
def no_parts(monkeypatch):
    """Try no parts of what is refused, see tests/proving/parts/test_parts_of_refused.py."""
    monkeypatch.setattr(parts_app, 'exporting_parts', lambda *given: [])


def checked(tmp_path, content, *words):
    (tmp_path / 'user.py').write_text(content)
    return export_app.main([str(tmp_path / 'user.py'), '--check', *words])


OTHER_TENSORS = pytest.mark.parametrize(
    ('head', 'words'),
    [('HeadOfEightChannels', 'bbox_pred_0 has 8 channels'), ('HeadWithKeypoints', '20 tensors')],
)


@OTHER_TENSORS
def test_a_head_of_other_tensors_than_those_of_the_kind_is_traced_whole(head, words, tmp_path, capsys):
    content = TOY + f"model = dict(bbox_head=dict(type='{head}'))\n"
    assert checked(tmp_path, content) == 0
    assert 'family traced' in capsys.readouterr().out


@OTHER_TENSORS
def test_other_tensors_than_those_of_the_kind_are_refused_in_other_forms(head, words, tmp_path, capsys):
    content = TOY + f"model = dict(bbox_head=dict(type='{head}'))\n"
    assert checked(tmp_path, content, '--postprocess', 'raw') == 2
    assert words in capsys.readouterr().err


def test_a_forward_that_fails_is_named_by_its_module(tmp_path, capsys):
    assert checked(tmp_path, NARROW_NECK) == 2
    assert 'neck.lateral_convs.2' in capsys.readouterr().err


def test_a_model_that_runs_at_its_own_size_alone_is_exported(tmp_path):
    content = TOY + "model = dict(backbone=dict(type='BackboneOfOneSize'))\n"
    assert checked(tmp_path, content, '--shape', '160', '160') == 0


def test_what_a_kernel_says_of_untrained_weights_is_no_refusal(tmp_path):
    content = TOY + "model = dict(bbox_head=dict(type='HeadOfUntrainedRegions'))\n"
    assert checked(tmp_path, content) == 0


LIBRARY = """
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES

@BACKBONES.register_module()
class BackboneOfALibrary(ResNet):
    def forward(self, picture):
        return super().forward(picture + torch.fft.rfft2(picture).real.mean())
"""


@pytest.mark.parametrize(
    ('backbone', 'words', 'file'),
    [
        ('BackboneOfFrequencies', ('--dynamic-export',), 'test_trial.py:'),
        ('BackboneOfALibrary', (), 'timms.py:9'),
    ],
)
def test_an_operator_that_the_exporter_lacks_is_refused_with_module_line_and_parts(
    backbone, words, file, tmp_path, capsys, monkeypatch
):
    (tmp_path / 'site-packages').mkdir()
    (tmp_path / 'site-packages/timms.py').write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path / 'site-packages')
    content = TOY + f"model = dict(backbone=dict(type='{backbone}'))\n"
    if backbone == 'BackboneOfALibrary':
        content += "custom_imports = dict(imports=['timms'])\n"
    assert checked(tmp_path, content, *words) != 0
    said = capsys.readouterr().err
    assert all(part in said for part in ('fft_rfft2', 'backbone', file, '--parts'))
