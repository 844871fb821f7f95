"""Pre-processing equals mmdet's own test pipeline bit for bit; what it cannot express is refused by name."""

import copy
import os

import cv2
import numpy as np
import pytest
from mmdet.datasets.pipelines import Compose

from mmdeploy_ext.base.config import load_config, mmdet_config, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from mmdeploy_ext.runtime.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.spec.preparation import PreprocessRule

test_pipeline.__test__ = False
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
ODD = dict(mean=[0.1, 127.3, 255.0], std=[0.3, 77.7, 128.0], to_rgb=True)
SIZES = [(480, 640), (500, 31), (1, 1), (97, 101)]
NORMS = [(IMAGENET, 'cv2'), (CAFFE, 'cv2'), (ODD, 'pillow')]


def pipeline(scale, norm=None, pad=None, **resize):
    steps = [dict(type='Resize', **dict(dict(keep_ratio=True), **resize)), dict(type='RandomFlip')]
    steps += [dict(type='Normalize', **norm)] if norm else []
    steps += [dict(type='Pad', **pad)] if pad else []
    steps += [dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
    return [
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=scale, flip=False, transforms=steps),
    ]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_mmdet(steps, path):
    """Return the tensor and metas of mmdet's own `Compose`."""
    steps = copy.deepcopy(steps)
    if not any(step['type'] == 'Normalize' for step in steps[1].get('transforms', ())):
        steps[1]['transforms'][-1]['meta_keys'] = ('img_shape', 'ori_shape', 'scale_factor')
    data = Compose(steps)(dict(img_info=dict(filename=str(path)), img_prefix=None))
    image = data['img'][0]
    return getattr(image, 'data', image).float().numpy(), data['img_metas'][0].data


def assert_equals_mmdet(steps, path):
    tensor, metas = by_mmdet(steps, path)
    prepared = prepare_image(rule_from_pipeline(steps), read_image(path))
    assert prepared.tensor.dtype == np.float32
    assert prepared.tensor.shape == tensor.shape
    np.testing.assert_array_equal(prepared.tensor, tensor)
    assert (*prepared.img_shape, 3) == metas['img_shape']
    assert (*prepared.ori_shape, 3) == metas['ori_shape']
    assert prepared.scale_factor.dtype == metas['scale_factor'].dtype
    np.testing.assert_array_equal(prepared.scale_factor, metas['scale_factor'])
    return prepared


@pytest.fixture(scope='module')
def image_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')

    def write(height, width, seed=0):
        path = folder / f'{height}x{width}_{seed}.png'
        if not path.exists():
            cv2.imwrite(str(path), picture(height, width, seed))
        return path

    return write


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('norm', 'backend'), NORMS, ids=['imagenet', 'caffe', 'odd'])
def test_equals_mmdets_pipeline_bit_for_bit(image_file, size, norm, backend):
    assert_equals_mmdet(pipeline((333, 200), norm, dict(size_divisor=32), backend=backend), image_file(*size))


def with_defaults():
    steps = pipeline((320, 200), dict(mean=IMAGENET['mean'], std=IMAGENET['std']), dict(size_divisor=32))
    del steps[1]['transforms'][0]['keep_ratio']
    return steps


@pytest.mark.parametrize(
    'steps',
    [
        with_defaults(),
        pipeline((256, 256), IMAGENET, dict(pad_to_square=True)),
        pipeline((320, 200), IMAGENET, dict(size_divisor=32), keep_ratio=False),
        pipeline((256, 256), IMAGENET, dict(size=(256, 256))),
        pipeline((256, 256), CAFFE, dict(size=(320, 288), pad_val=dict(img=114))),
        pipeline((320, 200), IMAGENET, dict(size_divisor=128, pad_val=dict(img=(3, 2, 1)))),
        pipeline((320, 200), IMAGENET, dict(size=(128, 400))),
        pipeline((200, 320), None, dict(size_divisor=1)),
    ],
    ids=[
        'defaults',
        'pad to a square',
        'stretch',
        'pad to',
        'pad larger',
        'pad values',
        'pad smaller',
        'no norm',
    ],
)
@pytest.mark.parametrize('size', [(120, 90), (333, 500)])
def test_equals_mmdet_for_other_rules(image_file, steps, size):
    assert_equals_mmdet(steps, image_file(*size))


def centred(norm=IMAGENET, **pad):
    """Return a pipeline that keeps the size and pads all around."""
    steps = [dict(type='Resize', keep_ratio=True)]
    pad = dict(
        dict(mean=[104, 117, 124], std=[1, 1, 1], to_rgb=True, test_pad_mode=['logical_or', 31]), **pad
    )
    pad = dict(dict(ratios=None, border=None, test_mode=True), **pad)
    steps.append(dict(type='RandomCenterCropPad', **pad))
    steps += [
        dict(type='RandomFlip'),
        dict(type='Normalize', **norm),
        dict(type='ImageToTensor', keys=['img']),
    ]
    keys = ('img_shape', 'ori_shape', 'scale_factor', 'border')
    return [
        dict(type='LoadImageFromFile', to_float32=True),
        dict(
            type='MultiScaleFlipAug',
            scale_factor=1.0,
            flip=False,
            transforms=[*steps, dict(type='Collect', keys=['img'], meta_keys=keys)],
        ),
    ]


@pytest.mark.parametrize(
    'steps',
    [
        test_pipeline(load_config(mmdet_config('centernet/centernet_resnet18_140e_coco.py'))),
        centred(test_pad_add_pix=1),
        centred(CAFFE, to_rgb=False),
        centred(CAFFE),
        centred(ODD, test_pad_mode=('size_divisor', 33)),
    ],
    ids=['CenterNet', 'another value', 'BGR', 'RGB value, BGR input', 'a multiple'],
)
@pytest.mark.parametrize('size', [(120, 90), (31, 63)])
def test_padding_all_around_equals_mmdets(image_file, steps, size):
    prepared = assert_equals_mmdet(steps, image_file(*size))
    top, _, left, _ = by_mmdet(steps, image_file(*size))[1]['border']
    assert prepared.border == (top, left)


@pytest.mark.parametrize('size', [(120, 90), (640, 427)])
def test_pictures_resized_in_float32_equal_mmdets(image_file, size):
    prepared = assert_equals_mmdet(in_float32(), image_file(*size))
    rounded = prepare_image(rule_from_pipeline(with_step('Resize')), read_image(image_file(*size)))
    assert 0 < np.abs(prepared.tensor - rounded.tensor).max() < 0.02


def test_a_scale_factor_of_the_augmentation_comes_before_the_scale_of_the_resize(image_file):
    """It was overlooked: pictures that mmdet keeps were resized to the scale of the step."""
    steps = with_step('Resize', img_scale=(333, 200))
    steps[1].update(img_scale=None, scale_factor=1.0)
    assert assert_equals_mmdet(steps, image_file(37, 500)).img_shape == (37, 500)


@pytest.mark.parametrize(
    'config',
    [
        'atss/atss_r50_fpn_1x_coco.py',
        'dyhead/atss_r50_caffe_fpn_dyhead_1x_coco.py',
        'mask2former/mask2former_r50_lsj_8x2_50e_coco.py',  # pads before it normalises
    ],
)
def test_equals_mmdet_on_its_own_configs(image_file, config):
    prepared = assert_equals_mmdet(
        test_pipeline(load_config(mmdet_config(config))), image_file(120, 200, seed=1)
    )
    assert max(prepared.img_shape) > 1000


def with_step(step, **changes):
    steps = pipeline((333, 200), IMAGENET, dict(size_divisor=32))
    inner = steps[1]['transforms']
    target = next(entry for entry in [*steps, *inner] if entry['type'] == step)
    target.update(changes)
    return steps


def in_float32(**resize):
    steps = with_step('Resize', **resize)
    steps[0]['to_float32'] = True
    return steps


def loaded(color_type, resize='cv2', without=''):
    steps = with_step('Resize', backend=resize)
    steps[0]['color_type'] = color_type
    steps[1]['transforms'] = [entry for entry in steps[1]['transforms'] if entry['type'] != without]
    return steps


def reordered(*kinds):
    steps = pipeline((333, 200), IMAGENET, dict(size_divisor=32))
    by_kind = {entry['type']: entry for entry in steps[1]['transforms']}
    return [steps[0], *(by_kind[kind] for kind in kinds)]


@pytest.mark.parametrize(
    ('steps', 'named'),
    [
        ([dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=10)], 'CenterCrop'),
        (with_step('Resize', interpolation='bicubic'), "interpolation='bicubic'"),
        (with_step('MultiScaleFlipAug', flip=True), 'flip=True'),
        (reordered('Pad', 'Resize', 'Normalize'), 'Pad, Resize, Normalize'),
        (loaded(color_type='grayscale', resize='pillow', without='Normalize'), "'grayscale'"),
        (loaded(color_type='unchanged', without='Normalize'), 'no Normalize'),
        (loaded(color_type='bgr'), "'bgr'"),
        (in_float32(backend='pillow'), 'to_float32'),
        (with_step('Resize', backend='skimage'), "'skimage'"),
        (with_step('MultiScaleFlipAug', img_scale=333), 'img_scale=333'),
        (with_step('MultiScaleFlipAug', img_scale=[(1, 2, 3)]), r'\(1, 2, 3\)'),
        (with_step('MultiScaleFlipAug', img_scale=[(333, 200), (400, 300)]), '2 scales'),
        (with_step('MultiScaleFlipAug', img_scale=None, scale_factor=2.0), 'scale_factor=2.0'),
        (with_step('Normalize', mean=[0, 0]), r'mean=\[0, 0\]'),
        (with_step('Pad', pad_to_square=True), 'pad_to_square'),
        (with_step('Pad', pad_val='black'), 'Pad'),
        ([dict(type='LoadImageFromFile'), dict(type='RandomFlip', flip_ratio=0.5)], 'flip_ratio=0.5'),
        (centred(test_mode=False), 'test_mode=False'),
    ],
)
def test_unsupported_step_is_refused_by_name(steps, named):
    with pytest.raises(ConfigError, match=named):
        rule_from_pipeline(steps)


@pytest.mark.parametrize('size', [(64, 96), (33, 500), (500, 33)])
def test_fixed_size_letterboxes_bottom_and_right(size):
    image = picture(*size)
    mean, std = tuple(IMAGENET['mean']), tuple(IMAGENET['std'])
    rule = PreprocessRule(mean, std, img_scale=(1333, 800), size=(128, 160))
    prepared = prepare_image(rule, image)
    height, width = prepared.img_shape
    assert prepared.tensor.shape == (3, 128, 160)
    assert height == 128 or width == 160
    assert abs(height / width - size[0] / size[1]) <= 0.51 * (1 + size[0] / size[1]) / width
    assert not prepared.tensor[:, height:].any()
    assert not prepared.tensor[:, :, width:].any()
    alone = prepare_image(PreprocessRule(mean, std, img_scale=(width, height), keep_ratio=False), image)
    np.testing.assert_array_equal(prepared.tensor[:, :height, :width], alone.tensor)
    np.testing.assert_array_equal(prepared.scale_factor, alone.scale_factor)


def test_a_fixed_size_is_filled_where_the_ratio_is_not_kept():
    mean, std, image = tuple(IMAGENET['mean']), tuple(IMAGENET['std']), picture(33, 500)
    found = prepare_image(
        PreprocessRule(mean, std, img_scale=(1333, 800), keep_ratio=False, size=(128, 160)), image
    )
    stretched = prepare_image(PreprocessRule(mean, std, img_scale=(160, 128), keep_ratio=False), image)
    assert found.img_shape == (128, 160)
    np.testing.assert_array_equal(found.tensor, stretched.tensor)
    np.testing.assert_array_equal(found.scale_factor, stretched.scale_factor)


def test_rule_survives_json():
    rule = rule_from_pipeline(
        pipeline((400, 200), CAFFE, dict(size=(256, 400), pad_val=dict(img=7)), backend='pillow')
    )
    assert PreprocessRule.from_json(rule.to_json()) == rule
    rule = rule_from_pipeline(centred(test_pad_add_pix=1))
    assert PreprocessRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_resize_rule_equals_mmdet_for_any_size(backend):
    from mmdet.datasets.pipelines import Resize

    rng = np.random.default_rng(0)
    for height, width, *scale in rng.integers(1, 121, (20, 4)).tolist():
        for keep_ratio in (True, False):
            check_resize(Resize, height, width, tuple(scale), keep_ratio, backend)
    check_resize(Resize, 32, 41, (133, 80), True, backend)  # 41 * 2.5 is half a pixel above 102


def check_resize(Resize, height, width, scale, keep_ratio, backend):
    image = picture(height, width)
    results = dict(img=image.copy(), img_shape=image.shape, img_fields=['img'], scale=scale)
    longest = max(scale) / max(height, width), min(scale) / min(height, width)
    if keep_ratio and min(longest) * min(height, width) < 0.5:
        return  # mmcv asks OpenCV for an empty image; the rule keeps one pixel
    wanted = Resize(keep_ratio=keep_ratio, backend=backend)(results)
    rule = PreprocessRule(img_scale=scale, keep_ratio=keep_ratio, to_rgb=False, resize=backend)
    prepared = prepare_image(rule, image)
    np.testing.assert_array_equal(prepared.tensor, wanted['img'].transpose(2, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(prepared.scale_factor, wanted['scale_factor'])


def test_what_others_write_to_stderr_while_an_image_is_decoded_is_not_lost(tmp_path, monkeypatch, capfd):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    decode = cv2.imdecode

    def slow(*arguments):
        os.write(2, b'a line of another thread\n')
        return decode(*arguments)

    monkeypatch.setattr(cv2, 'imdecode', slow)
    assert read_image(path).shape == (8, 8, 3)
    assert capfd.readouterr().err == 'a line of another thread\n'


def test_a_side_is_a_pixel_at_least_after_the_resizing():
    rule = PreprocessRule(mean=(0.0,) * 3, std=(1.0,) * 3, to_rgb=True, img_scale=(320, 192))
    assert rule.resized_shape(1, 5000) == (1, 320)
    assert rule.resized_shape(5000, 1) == (320, 1)
