"""The multi-camera rule equals the real test pipeline bit for bit, and refuses what does not fit."""

import copy
import json

import numpy as np
import pytest

from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.base.typed_json import read
from mmdeploy_ext.runtime.preprocess.cameras import calibrate, multiview_rule, prepare_views
from mmdeploy_ext.runtime.preprocess.pictures import FILTERS, resize_pillow

STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
NORM = dict(STATISTICS, to_rgb=True)
SMALL = dict(
    H=90, W=160, final_dim=(30, 100), bot_pct_lim=(0.0, 0.1), resize_lim=(0.38, 0.55), rot_lim=(0.0, 0.0),
    rand_flip=True,
)  # fmt: skip
WIDE = dict(SMALL, final_dim=(60, 90))
PADDED = dict(SMALL, final_dim=(90, 160), bot_pct_lim=(0.3, 0.3))


def pipeline(conf, norm=NORM, **pad):
    return [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='ResizeCropFlipRotImage', data_aug_conf=conf, training=False),
        dict(type='NormalizeMultiviewImage', **norm),
        dict(type='PadMultiViewImage', **(pad or dict(size_divisor=32))),
        dict(
            type='MultiScaleFlipAug3D',
            img_scale=(1333, 800),
            flip=False,
            transforms=[dict(type='PETRFormatBundle3D'), dict(type='Collect3D')],
        ),
    ]


def rig(size, seed=0):
    """Images, intrinsics (N, 3, 3) and lidar2cam (N, 4, 4) of six cameras."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(6)]
    to_size = np.diag([size[1] / 1600, size[0] / 900, 1])
    intrinsics = np.tile(to_size @ [[1266.4, 0, 816.3], [0, 1265.9, 491.5], [0, 0, 1]], (6, 1, 1))
    lidar2cam = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    lidar2cam[:, :3, 3] = rng.normal(size=(6, 3))
    return images, intrinsics, lidar2cam


@pytest.mark.parametrize('resample', FILTERS)
@pytest.mark.parametrize(
    ('source', 'target'),
    [((90, 160), (40, 70)), ((20, 30), (41, 77)), ((1, 9), (7, 2))],
)
def test_resize_is_pillows_bit_for_bit(source, target, resample):
    image = pytest.importorskip('PIL.Image')
    values = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    kind = getattr(image.Resampling, resample.upper())
    wanted = np.asarray(image.fromarray(values).resize(target[::-1], kind))
    np.testing.assert_array_equal(resize_pillow(values, *target, resample), wanted)
    rows = target[0] // 3, target[0]
    np.testing.assert_array_equal(resize_pillow(values, *target, resample, rows), wanted[rows[0] : rows[1]])


@pytest.mark.parametrize(
    ('conf', 'norm', 'pad'),
    [
        (SMALL, NORM, {}),
        (WIDE, STATISTICS, {}),
        (PADDED, dict(STATISTICS, to_rgb=False), {}),
        (SMALL, NORM, dict(size=(64, 128))),
    ],
    ids=['small', 'wide, default colours', 'padded, BGR', 'pad size'],
)
def test_equals_the_real_pipeline_bit_for_bit(conf, norm, pad):
    from mmdet3d.datasets.pipelines import Compose

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    steps = pipeline(conf, norm, **pad)
    images, intrinsics, lidar2cam = rig((conf['H'], conf['W']))
    full = np.tile(np.eye(4), (6, 1, 1))
    full[:, :3, :3] = intrinsics
    results = dict(
        img=[image.astype(np.float32) for image in images], intrinsics=list(full), extrinsics=list(lidar2cam)
    )
    results = Compose(copy.deepcopy(steps[1:4]))(results)
    rule = multiview_rule(steps)
    wanted = np.stack(results['img']).transpose(0, 3, 1, 2)
    assert wanted.shape[2:] == rule.input_size
    np.testing.assert_array_equal(prepare_views(rule, images), wanted)
    calibration = calibrate(rule, intrinsics, lidar2cam)
    np.testing.assert_array_equal(calibration.intrinsics, np.stack(results['intrinsics']))
    np.testing.assert_array_equal(calibration.lidar2img, np.stack(results['lidar2img']))


@pytest.mark.parametrize('scales', [None, [0.81]])
def test_a_rule_that_normalises_first_is_the_test_pipeline_bit_for_bit(scales):
    from mmdet3d.datasets.pipelines import Compose

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    scaled = [dict(type='PadMultiViewImage', size_divisor=32)]
    if scales is not None:
        scaled.insert(0, dict(type='RandomScaleImageMultiViewImage', scales=scales))
    norm = dict(type='NormalizeMultiviewImage', **NORM)
    steps = [norm, dict(type='MultiScaleFlipAug3D', img_scale=(160, 90), flip=False, transforms=scaled)]
    images, intrinsics, lidar2cam = rig((90, 160))
    full = np.tile(np.eye(4), (6, 1, 1))
    full[:, :3, :3] = intrinsics
    results = dict(img=[image.astype(np.float32) for image in images], lidar2img=list(full @ lidar2cam))
    results = Compose(copy.deepcopy([norm, *scaled]))(results)
    rule = multiview_rule(steps)
    assert rule.normalised_first
    np.testing.assert_array_equal(prepare_views(rule, images), np.stack(results['img']).transpose(0, 3, 1, 2))
    calibration = calibrate(rule, intrinsics, lidar2cam)
    np.testing.assert_allclose(calibration.lidar2img, np.stack(results['lidar2img']), rtol=1e-12)


def test_survives_json_and_the_metadata_tells_it_from_the_rule_of_one_image():
    from mmdeploy_ext.spec.metadata import Rule
    from mmdeploy_ext.spec.preparation import PreprocessRule

    for rule in (multiview_rule(pipeline(SMALL, size=(64, 128))), PreprocessRule(size=(4, 5))):
        assert read(Rule, json.loads(json.dumps(rule.to_json()))) == rule


def changed(place, **changes):
    steps = copy.deepcopy(pipeline(SMALL))
    steps[place].update(changes)
    return steps


@pytest.mark.parametrize(
    ('steps', 'named'),
    [
        (pipeline(SMALL)[::-1], 'in this order'),
        (changed(3, pad_val=1), 'pad_val=1'),
        (changed(3, size_divisor=0.5), 'size_divisor=0.5'),
        (changed(3, size=(10, 10)), r'size=\(10, 10\)'),
        (changed(2, type='RandomScaleImage3D'), 'RandomScaleImage3D'),
        (changed(1, training=True), 'training=True'),
        (changed(1, data_aug_conf=dict(H=90, W=160)), 'final_dim'),
        (changed(4, flip=True), 'flip=True'),
    ],
)
def test_a_pipeline_that_no_file_can_describe_is_refused_by_step_and_option(steps, named):
    with pytest.raises(ConfigError, match=named):
        multiview_rule(steps)


def test_pictures_of_another_number_or_kind_are_refused():
    rule = multiview_rule(pipeline(SMALL))
    images, *_ = rig((90, 160))
    for given in (images[:5], [*images[:5], None], [image.astype(np.float32) for image in images]):
        with pytest.raises(ShapeError):
            prepare_views(rule, given)
