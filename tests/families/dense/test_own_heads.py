"""Heads of users: their own decoding is traced; one with a selection of its own is left to the trace."""

import pytest
import torch
from mmdet.models.dense_heads import RepPointsHead, VFNetHead

import dense_heads
import own_heads
from dense_heads import detector, make_head
from dev.seeded.weights import write_seeded
from mmdeploy_ext.base.errors import ConfigError, ModelFileError
from mmdeploy_ext.cli import export_app
from mmdeploy_ext.families.dense import heads
from mmdeploy_ext.families.dense.graphs import DenseFullForm
from mmdeploy_ext.runtime.box_coders import Traced
from mmdeploy_ext.runtime.detect import open_model
from test_dense_heads import SIZE, eager, images, same

REPO = dense_heads.REPO
OWN = "custom_imports = dict(imports=['own_heads'], allow_failed_imports=False)\n"
ATSS = f"_base_ = ['{REPO}/configs/demo/atss_toy.py']\n" + OWN
RETINA = f"_base_ = ['{REPO}/configs/demo/retinanet_toy.py']\n" + OWN
POINT_GFL = f"""{ATSS}
model = dict(bbox_head=dict(
    _delete_=True, type='PointGFLHead', num_classes=6, in_channels=64, feat_channels=24, stacked_convs=2,
    strides=[8, 16, 32, 64, 128], reg_max=7,
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True)))
"""
PICO = POINT_GFL.replace('PointGFLHead', 'PicoHead')
SCRFD = POINT_GFL.replace(
    "'PointGFLHead'",
    """'ScrfdHead', anchor_generator=dict(
        type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
        strides=[8, 16, 32, 64, 128])""",
).replace('strides=[8, 16, 32, 64, 128], reg_max', "norm_cfg=dict(type='GN', num_groups=8), reg_max")
LOG_BOXES = RETINA + "model = dict(bbox_head=dict(bbox_coder=dict(_delete_=True, type='LogBoxCoder')))\n"


def equal(head):
    """Assert that our post-processing gives what the head's own `get_bboxes` gives."""
    heads.check_results(head, 'full')
    raw, clips, scales = images(head)
    wanted = dense_heads.by_mmdet(head, raw, clips, scales)
    same(eager(DenseFullForm(detector(head)), raw, clips, scales), wanted, max(SIZE))


def changed(name, cls):
    head = make_head(name)
    head.__class__ = cls
    return head


def older_loss(self, *outputs):
    return {}


@pytest.mark.parametrize(
    ('name', 'cls', 'method'),
    [
        ('GFLHead', own_heads.GFLHeadOf217, 'Priors.get_bboxes'),
        ('YOLOV3Head', own_heads.YOLOV3HeadOf216, 'YOLOV3HeadOf216.get_bboxes'),
        ('TOODHead', own_heads.TOODHeadThatClips, 'TOODHeadThatClips._'),
        ('VFNetHead', type('Trained', (VFNetHead,), dict(loss=older_loss)), ''),
    ],
)
def test_a_selection_of_the_users_is_left_to_the_trace_and_to_raw_outputs(name, cls, method):
    head = changed(name, cls)
    heads.check_results(head, 'raw')
    if not method:
        return equal(head)
    assert isinstance(heads.facts_of(head).coder, Traced)
    for form in ('full', 'decode'):
        with pytest.raises(ConfigError, match=method):
            heads.check_results(head, form)


def older_vfnet(self, scores, boxes, refined, img_metas, cfg=None, rescale=None):
    return VFNetHead.get_bboxes(self, scores, refined, img_metas=img_metas, cfg=cfg, rescale=rescale)


def older_reppoints(self, scores, points, refined, img_metas, cfg=None, rescale=False):
    boxes = [self.points2bbox(level) for level in refined]
    return RepPointsHead.get_bboxes(self, scores, boxes, img_metas=img_metas, cfg=cfg, rescale=rescale)


@pytest.mark.parametrize(
    ('name', 'base', 'method', 'transform'),
    [
        ('VFNetHead', VFNetHead, older_vfnet, ''),
        ('RepPointsHead', RepPointsHead, older_reppoints, 'moment'),
        ('RepPointsHead', RepPointsHead, older_reppoints, 'minmax'),
        ('RepPointsHead', RepPointsHead, older_reppoints, 'partial_minmax'),
    ],
)
def test_the_three_outputs_of_an_older_head_are_given_to_its_get_bboxes(name, base, method, transform):
    head = make_head(name)
    if transform:
        head.transform_method = transform
        torch.nn.init.constant_(head.moment_transfer, 0.3)
    raw, clips, scales = images(head)
    wanted = dense_heads.by_mmdet(head, raw, clips, scales)
    head.__class__ = type('Older', (base,), dict(get_bboxes=method))
    same(dense_heads.by_mmdet(head, raw, clips, scales), wanted, max(SIZE))


def exported(tmp_path, text, *words):
    config, checkpoint, file = (tmp_path / name for name in ('own.py', 'own.pth', 'own.onnx'))
    config.write_text(text)
    if not checkpoint.exists():
        write_seeded(str(config), checkpoint)
    size = ['--shape', '128', '160']
    status = export_app.main([str(config), str(checkpoint), '--output-file', str(file), *size, *words])
    return status, file


@pytest.mark.matrix
def test_files_of_a_coder_of_the_users_are_proven(tmp_path, capsys):
    for form in ('full', 'decode', 'raw'):
        status, file = exported(tmp_path, LOG_BOXES, '--verify', '--postprocess', form)
        said = capsys.readouterr()
        assert status == 0 and 'PROVEN' in said.out, said.out + said.err
        file.rename(tmp_path / f'{form}.onnx')
    facts = open_model(str(tmp_path / 'raw.onnx')).metadata.postprocess
    assert isinstance(facts.coder, Traced)
    with pytest.raises(ModelFileError, match=r'LogBoxCoder\.decode .*--postprocess decode or full'):
        facts.coder.boxes(None, None, {}, 0)


@pytest.mark.matrix
def test_a_head_with_a_selection_of_its_own_is_proven_whole_and_by_its_raw_outputs(tmp_path, capsys):
    for words, family in (((), 'traced'), (('--postprocess', 'raw'), 'dense')):
        status, file = exported(tmp_path, POINT_GFL, '--verify', *words)
        said = capsys.readouterr()
        assert status == 0 and 'PROVEN' in said.out, said.out + said.err
        assert open_model(str(file)).metadata.family == family
    assert exported(tmp_path, POINT_GFL, '--postprocess', 'decode')[0] == 2


@pytest.mark.matrix
@pytest.mark.parametrize('text', [PICO, SCRFD], ids=['PicoHead', 'ScrfdHead'])
def test_a_head_with_other_outputs_in_an_export_is_exported_as_pytorch_runs_it(tmp_path, text, capsys):
    assert exported(tmp_path, text, '--verify')[0] == 0
    assert 'own_heads.py' in capsys.readouterr().out
    words = [str(tmp_path / 'own.py'), str(tmp_path / 'own.pth'), '--output-file', str(tmp_path / 'cut')]
    assert export_app.main([*words, '--parts', 'backbone+neck', 'bbox_head', '--verify']) == 0
    assert 'own_heads.py' in capsys.readouterr().out


def test_an_overridden_method_of_a_known_coder_is_traced():
    class Shifted(type(make_head('FCOSHead').bbox_coder)):
        def decode(self, points, distances, max_shape=None):
            return super().decode(points + 3, distances, max_shape)

    head = make_head('FCOSHead')
    head.bbox_coder = Shifted()
    assert isinstance(heads.facts_of(head).coder, Traced)
    equal(head)
