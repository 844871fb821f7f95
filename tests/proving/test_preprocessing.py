"""Preprocessing as a level of the proof: the rule of a file against the config's own test pipeline."""

import contextlib
import copy
import dataclasses
import types
import unittest.mock
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

import toy_atss
from dev.zoo import configs
from mmdeploy_ext.base.config import load_config, mmdet_config, without_augmentation
from mmdeploy_ext.base.config import test_pipeline as steps_of_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.proving.preprocessing import compare_pictures
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.runtime.preprocess import pictures, pipeline_rule
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from mmdeploy_ext.spec.verdict import Results, Verdict

PICTURE = read_image(toy_atss.PICTURE)
SIZES = (None, (256, 320))


def file_of(rule, size=None):
    """Return what a proof reads of a file with a rule, of any size or of one."""
    height, width = size or (0, 0)
    axes = ('B', 3, *(size or ('H', 'W')))
    return types.SimpleNamespace(
        options=dict(dynamic=size is None, height=height, width=width),
        preprocess=dataclasses.replace(rule, size=size),
        spec=GraphSpec('toy', (TensorSpec('input', 'float32', axes),), ()),
    )


def compared(cfg, size=None, files=(toy_atss.PICTURE,), **options):
    rule = pipeline_rule.rule_from_pipeline(steps_of_config(cfg))
    return compare_pictures(cfg, file_of(rule, size), files, PICTURE, **options)[0]


def with_steps(**changes):
    """Return the toy's config with other options of some steps; None removes a step, `UNSET` an option."""
    cfg = copy.deepcopy(TOY)
    outer = steps_of_config(cfg)
    steps = outer[1]['transforms']
    for kind, options in changes.items():
        for step in [step for step in (*outer, *steps) if step['type'] == kind]:
            step.update(options or {})
            for name in [name for name, value in step.items() if value is UNSET]:
                del step[name]
            if options is None:
                steps.remove(step)
    return cfg


UNSET = object()
TOY = load_config(toy_atss.CONFIG)
CORNER = load_config(mmdet_config('cornernet/cornernet_hourglass104_mstest_10x5_210e_coco.py'))
without_augmentation(CORNER)
OTHERS = dict(
    ssd=load_config(mmdet_config('ssd/ssd300_coco.py')),
    corner=CORNER,
    fast_rcnn=load_config(mmdet_config('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py')),
    mask2former=load_config(mmdet_config('mask2former/mask2former_r50_lsj_8x2_50e_coco.py')),
    yolox=load_config(mmdet_config('yolox/yolox_tiny_8x8_300e_coco.py')),
    pillow=with_steps(Resize=dict(backend='pillow')),
    float32=with_steps(LoadImageFromFile=dict(to_float32=True)),
    no_pad=with_steps(Pad=None),
    no_resize=with_steps(Resize=None, ImageToTensor=dict(type='DefaultFormatBundle', keys=UNSET)),
)


@contextlib.contextmanager
def applied_as(rule_of=lambda rule: rule, result_of=lambda result: {}):
    """Inside the block rules are applied with other values, or give others in some fields."""
    right = pictures.prepare_image

    def prepare(rule, image):
        result = right(rule_of(rule), image)
        return dataclasses.replace(result, **result_of(result))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, 'prepare_image', prepare)
        yield


def another_rule(**changes):
    return applied_as(
        lambda rule: dataclasses.replace(
            rule, **{name: change(getattr(rule, name)) for name, change in changes.items()}
        )
    )


def another_result(**changes):
    return applied_as(result_of=lambda result: {name: change(result) for name, change in changes.items()})


def another_interpolation(flag):
    def resize(image, height, width):
        return cv2.resize(image, (width, height), interpolation=flag)

    return unittest.mock.patch.dict(pictures.RESIZERS, cv2=resize)


FAULTS = {
    'to_rgb inverted': lambda: another_rule(to_rgb=lambda value: not value),
    'keep_ratio inverted': lambda: another_rule(keep_ratio=lambda value: not value),
    'resized by areas': lambda: another_interpolation(cv2.INTER_AREA),
    'a mean a thousandth larger': lambda: another_rule(mean=lambda value: (value[0] * 1.001, *value[1:])),
    'scale_factor height before width': lambda: another_result(
        scale_factor=lambda result: result.scale_factor[[1, 0, 3, 2]]
    ),
    'img_shape of the padded picture': lambda: another_result(
        img_shape=lambda result: result.tensor.shape[1:]
    ),
}


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', ['toy', *OTHERS])
def test_the_rule_of_a_config_equals_its_pipeline_on_files_of_three_sizes(name, size):
    cfg = dict(OTHERS, toy=TOY)[name]
    result = compared(cfg, size)
    words = f' at {size[0]}x{size[1]}' if size else ''
    assert result.text == f"equal to the config's test pipeline{words} (3 images)"
    assert result.passed


@pytest.mark.matrix
def test_every_config_of_mmdet_whose_rule_is_taken_equals_its_pipeline():
    results, equal = {}, 0
    for path in configs.config_files([]):
        try:
            cfg = load_config(str(path))
        except ConfigError as error:
            assert 'mmcls' in str(error), path  # it is not installed
            continue
        if not cfg.get('model'):
            continue
        without_augmentation(cfg)
        steps = steps_of_config(cfg)
        if repr(steps) not in results:
            results[repr(steps)] = [
                compared(cfg, size) for size in (None, (608, 608), (480, 800), (832, 512))
            ]
        assert all(result.passed for result in results[repr(steps)]), path
        equal += 1
    assert equal >= 600 and len(results) >= 30


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_in_the_preparation_of_pictures_is_not_proven(name):
    with FAULTS[name]():
        result = compared(TOY)
    assert not result.passed and (result.differences or result.error)


PLAIN = with_steps(Normalize=None, Pad=None, ImageToTensor=dict(type='DefaultFormatBundle', keys=UNSET))
FORGOTTEN = dict(mean=(0.0,) * 3, std=(1.0,) * 3, to_rgb=False)
CHANGES = [  # config of the file, fields of the file's rule, config of the proof, step that is named
    (TOY, {}, with_steps(Resize=dict(keep_ratio=False)), 'after Resize'),
    (TOY, {}, with_steps(Normalize=dict(mean=[103.5, 116.3, 123.7])), 'after Normalize'),
    (TOY, {}, with_steps(Normalize=dict(to_rgb=False)), 'after Normalize'),
    (TOY, {}, with_steps(Pad=dict(size_divisor=64)), 'after Pad'),
    (TOY, {}, with_steps(LoadImageFromFile=dict(channel_order='rgb')), 'after LoadImageFromFile'),
    (TOY, {}, OTHERS['no_pad'], 'no Pad'),
    (TOY, {}, PLAIN, 'no Normalize'),
    (TOY, dict(img_scale=None), TOY, 'after Resize'),
    (TOY, FORGOTTEN, TOY, 'after Normalize'),
    (TOY, dict(size_divisor=1), TOY, 'after Pad'),
    (OTHERS['mask2former'], dict(size_divisor=64), OTHERS['mask2former'], 'after Pad'),
    (OTHERS['mask2former'], dict(to_rgb=False), OTHERS['mask2former'], 'after Normalize'),
    (CORNER, dict(pad_or=63), CORNER, 'after RandomCenterCropPad'),
]


@pytest.mark.parametrize(('source', 'fields', 'cfg', 'step'), CHANGES)
def test_the_step_after_which_pictures_differ_is_named(source, fields, cfg, step):
    rule = pipeline_rule.rule_from_pipeline(steps_of_config(source))
    file = file_of(dataclasses.replace(rule, **fields))
    result, _ = compare_pictures(cfg, file, (toy_atss.PICTURE,), PICTURE)
    assert not result.passed and step in result.text, result.text


@pytest.mark.parametrize('step', ['Resize', 'Normalize', 'RandomCenterCropPad'])
def test_the_step_is_named_for_files_of_a_fixed_size(step):
    cfg = CORNER if step == 'RandomCenterCropPad' else TOY
    fields = dict(Resize=dict(keep_ratio=False), Normalize=dict(to_rgb=False)).get(step, dict(centred=False))
    rule = pipeline_rule.rule_from_pipeline(steps_of_config(cfg))
    file = file_of(dataclasses.replace(rule, **fields), (256, 320))
    assert f'after {step}' in compare_pictures(cfg, file, (toy_atss.PICTURE,), PICTURE)[0].text


def test_the_picture_among_the_inputs_of_a_graph_is_compared_too(monkeypatch):
    def feeds(image, batch):
        return dict(input=np.stack([image.tensor] * batch))

    def mirrored(image, metadata):
        return dict(input=right(image, metadata)['input'][..., ::-1])

    right = detect.make_feeds
    assert compared(TOY, feeds=feeds).passed
    monkeypatch.setattr(detect, 'make_feeds', mirrored)
    assert {difference.name for difference in compared(TOY, feeds=feeds).differences} == {'input input'}


def dataset_config(kind):
    cfg = copy.deepcopy(TOY)
    cfg.data.test.type = kind
    return cfg


def brighter(dataset, index):
    results = CocoDataset.prepare_test_img(dataset, index)
    return dict(results, img=[image * 2 for image in results['img']])


def init_without_rgb(self, *args, pipeline=None, **kwargs):
    pipeline[1]['transforms'][2]['to_rgb'] = False
    CocoDataset.__init__(self, *args, pipeline=pipeline, **kwargs)


@pytest.mark.parametrize('methods', [dict(prepare_test_img=brighter), dict(__init__=init_without_rgb)])
def test_what_a_users_data_set_does_to_pictures_is_compared(methods):
    kind = type('Mine', (CocoDataset,), methods)
    result = compared(dataset_config(kind))
    assert not result.passed and 'tensor' in {difference.name for difference in result.differences}


def test_a_users_data_set_prepares_pictures_of_relative_paths(monkeypatch):
    monkeypatch.chdir(Path(toy_atss.PICTURE).parent)
    kind = type('Mine', (CocoDataset,), dict(prepare_test_img=brighter))
    result = compared(dataset_config(kind), files=[Path(toy_atss.PICTURE).name])
    assert Path(toy_atss.PICTURE).name in {difference.sample for difference in result.differences}
    assert not result.gaps


@pytest.mark.parametrize('name', ['__init__', 'prepare_test_img'])
def test_a_users_data_set_that_cannot_run_is_noted_in_the_verdict(name):
    def fails(*_, **__):
        raise OSError('no such table')

    kind = type('Mine', (CocoDataset,), dict(prepare_test_img=brighter) | {name: fails})
    verdict = Verdict({})
    Results(preprocessing=compared(dataset_config(kind))).add_to(verdict)
    assert 'Mine' in ' '.join(verdict.notes) and 'no such table' in ' '.join(verdict.notes)
