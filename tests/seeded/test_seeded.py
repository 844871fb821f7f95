"""Seeded weights of one-stage detectors: things are found, calmly, and only the seed decides."""

import functools

import pytest
import torch
from mmcv import Config

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dev.seeded.dense import build_student
from dev.seeded.weights import fill_seeded, normalised_photograph
from seeded_results import CALM, amplified, find

PIPELINE = [
    dict(type='MultiScaleFlipAug', transforms=[dict(type='Normalize', mean=[1.0] * 3, std=[57.0] * 3)])
]
UNNORMALISED = [dict(type='MultiScaleFlipAug', transforms=[dict(type='Pad', size_divisor=32)])]
TEST_CFG = dict(
    nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
)


def with_fpn(kind, **head):
    """Return the model of a head behind a narrow ResNet-18 and an FPN."""
    backbone = dict(type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3))
    neck = dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=32, start_level=1, num_outs=5,
        add_extra_convs='on_output',
    )  # fmt: skip
    head = dict(type=kind, num_classes=12, in_channels=32, feat_channels=32, stacked_convs=2) | head
    return dict(type='SingleStageDetector', backbone=backbone, neck=neck, bbox_head=head, test_cfg=TEST_CFG)


def yolox():
    return dict(
        type='YOLOX', input_size=(320, 320),
        backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125),
        neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
        bbox_head=dict(type='YOLOXHead', num_classes=12, in_channels=32, feat_channels=32),
        test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
    )  # fmt: skip


def centernet():
    return dict(
        type='CenterNet',
        backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
        neck=dict(type='CTResNetNeck', in_channel=64, num_deconv_filters=(32, 32, 16),
                  num_deconv_kernels=(4, 4, 4), use_dcn=False),
        bbox_head=dict(type='CenterNetHead', num_classes=12, in_channel=16, feat_channel=16),
        test_cfg=dict(topk=100, local_maximum_kernel=3, max_per_img=100),
    )  # fmt: skip


MODELS = {
    'points and distances': with_fpn('FCOSHead', norm_on_bbox=True, centerness_on_reg=True),
    'objectness, pixels as they are': yolox(),
    'peaks': centernet(),
}
"""Kinds whose last layers are filled by different rules; test_seeded_matrix.py has all heads of mmdet."""


@functools.cache
def config(name):
    pipeline = UNNORMALISED if MODELS[name]['type'] == 'YOLOX' else PIPELINE
    return Config(dict(model=MODELS[name], data=dict(test=dict(pipeline=pipeline))))


def filled(name, stray=0):
    """Return a detector with seeded weights; `stray` seeds what the rule must not depend on."""
    torch.manual_seed(stray)
    cfg = config(name)
    return fill_seeded(build_student(cfg), 0, *normalised_photograph(cfg))


@pytest.mark.parametrize('name', MODELS)
def test_every_kind_of_head_finds_things_of_many_classes_and_scores(name):
    model = filled(name)
    for found in find(model, config(name)):
        assert len(found.rows) >= 20
        assert found.classes >= 3
        assert len(set(found.scores)) >= len(found.rows) * 0.9
        assert found.scores.min() < 0.95
        assert found.rows[:, :4].std(0).min() > 5
    assert amplified(model, config(name)) < CALM


def test_the_weights_depend_on_the_seed_alone():
    first, second = (filled('peaks', stray).state_dict() for stray in (1, 2))
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]
