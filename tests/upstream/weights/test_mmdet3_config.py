"""Configs of mmdet 3 as configs of mmdet 2.28: equal to mmdet 2.28's own, or refused by key."""

import copy
from pathlib import Path

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.base import config as configs
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.upstream.weights.convert.mmdet3_config import (
    CONFIGS,
    REFUSED,
    read_mmdet3_config,
    to_mmdet2_config,
    to_mmdet2_pipeline,
)
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_names

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
PREPROCESSOR = dict(type='DetDataPreprocessor', **IMAGENET, pad_mask=True, pad_size_divisor=32)
PACK = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
LOAD = dict(type='LoadImageFromFile', backend_args=None)
STEPS = [
    LOAD,
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    PACK,
]
COCO = 'data/coco/'


def config3(name, preprocessor=PREPROCESSOR, steps=STEPS, **dataset):
    """Return a config as mmdet 3 has it, with the model of a config of mmdet 2.28."""
    model = Config.fromfile(mmdet_config(name)).model
    data = dict(
        type='CocoDataset',
        data_root=COCO,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        backend_args=None,
        pipeline=steps,
        **dataset,
    )
    content = dict(
        model={**model, 'data_preprocessor': preprocessor},
        test_dataloader=dict(batch_size=1, dataset=data),
        optim_wrapper=dict(type='AmpOptimWrapper'),
        default_hooks=dict(),
        test_cfg=dict(type='TestLoop'),
    )
    return Config(copy.deepcopy(content), cfg_text='model', filename='config3.py')


@pytest.mark.parametrize(
    'name',
    ['atss/atss_r50_fpn_1x_coco.py', 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', 'gfl/gfl_r50_fpn_1x_coco.py'],
)
def test_model_pipeline_and_data_set_are_those_of_mmdet_2(name):
    own, made = Config.fromfile(mmdet_config(name)), to_mmdet2_config(config3(name))
    own.model.pop('train_cfg')
    assert made.model.to_dict() == own.model.to_dict()
    assert made.data.test.pipeline == own.data.test.pipeline
    for key in ('type', 'ann_file', 'img_prefix'):
        assert str(made.data.test[key]).rstrip('/') == str(own.data.test[key]).rstrip('/')
    assert set(made.keys()) == {'model', 'data'}


def test_yolox_is_padded_to_a_square_and_not_normalised():
    name = 'yolox/yolox_s_8x8_300e_coco.py'
    square = dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
    steps = [LOAD, dict(type='Resize', scale=(640, 640), keep_ratio=True), square, PACK]
    made = to_mmdet2_config(config3(name, dict(type='DetDataPreprocessor', pad_size_divisor=32), steps))
    own = Config.fromfile(mmdet_config(name)).data.test.pipeline
    assert made.data.test.pipeline == own


def test_classes_and_scopes_are_taken_over():
    made = to_mmdet2_config(
        config3(
            'atss/atss_r50_fpn_1x_coco.py',
            {**PREPROCESSOR, 'type': 'mmdet.DetDataPreprocessor'},
            metainfo=dict(classes=('a', 'b')),
        )
    )
    assert made.data.test.classes == ('a', 'b')
    made = to_mmdet2_config(config3('atss/atss_r50_fpn_1x_coco.py', metainfo=dict(classes='names.txt')))
    assert made.data.test.classes == 'names.txt'
    cfg = config3('atss/atss_r50_fpn_1x_coco.py')
    cfg.model.backbone.type = 'mmdet.ResNet'
    assert to_mmdet2_config(cfg).model.backbone.type == 'ResNet'


def test_pictures_that_pillow_decodes_and_other_storages_are_loaded_alike():
    load = dict(LOAD, imdecode_backend='pillow', backend_args=dict(backend='petrel'))
    made = to_mmdet2_pipeline([load, *STEPS[1:]], PREPROCESSOR)
    plain = to_mmdet2_pipeline(STEPS, PREPROCESSOR)
    assert made[0] == dict(plain[0], file_client_args=dict(backend='petrel')) and made[1:] == plain[1:]


@pytest.mark.parametrize('kind', ['ByteTrack', 'SoftTeacher'])
def test_of_a_tracker_and_of_a_teacher_the_detector_is_translated(kind, capsys):
    cfg = config3('atss/atss_r50_fpn_1x_coco.py', dict(PREPROCESSOR, type='TrackDataPreprocessor'))
    preprocessor = cfg.model.pop('data_preprocessor')
    broadcast = dict(type='TransformBroadcaster', transforms=[*STEPS[:2], dict(type='LoadTrackAnnotations')])
    cfg.test_dataloader.dataset.pipeline = [broadcast, dict(type='PackTrackInputs')]
    cfg.model = dict(type=kind, detector=cfg.model, data_preprocessor=preprocessor, tracker=dict(type='x'))
    made, plain = to_mmdet2_config(cfg), to_mmdet2_config(config3('atss/atss_r50_fpn_1x_coco.py'))
    assert made.model == plain.model and made.data.test.pipeline == plain.data.test.pipeline
    assert kind in capsys.readouterr().err
    prefixes = [f'{name}.backbone.x' for name in ('detector', 'teacher', 'student')]
    assert [*to_mmdet2_names(prefixes, {}, 'ATSS').values()] == ['backbone.x'] * 2


def test_options_name_keys_of_either_version_and_engines_stay(tmp_path):
    cfg, path = config3('atss/atss_r50_fpn_1x_coco.py'), tmp_path / 'atss.py'
    path.write_text(f'{cfg.pretty_text}backend_config = dict(type="onnxruntime", ort_settings=dict(a=1))\n')
    options = {
        'model.test_cfg.max_per_img': 7,
        'test_dataloader.dataset.data_root': 'elsewhere',
        'data.test.img_prefix': 'pictures',
        'backend_config.ort_settings.a': 2,
    }
    made = load_config(str(path), options)
    assert made.model.test_cfg.max_per_img == 7
    assert made.data.test.ann_file == 'elsewhere/annotations/instances_val2017.json'
    assert made.data.test.img_prefix == 'pictures'
    assert made.backend_config == dict(type='onnxruntime', ort_settings=dict(a=2))


def test_proposals_are_loaded_as_by_mmdet_2():
    own = Config.fromfile(mmdet_config('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py')).data.test
    proposals = dict(type='LoadProposals', num_max_proposals=None)
    steps = [LOAD, proposals, dict(type='ProposalBroadcaster', transforms=[STEPS[1]]), PACK]
    file = dict(proposal_file='proposals/rpn_r50_fpn_1x_val2017.pkl')
    made = to_mmdet2_config(config3('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py', steps=steps, **file)).data.test
    assert (made.pipeline, made.proposal_file) == (own.pipeline, own.proposal_file)


OTHER = dict(type='CocoDataset', data_root='b/', ann_file='b.json', metainfo=dict(classes=('a', 'b')))


@pytest.mark.parametrize(
    ('wrap', 'joined'),
    [
        (lambda data: dict(type='ConcatDataset', datasets=[data, dict(OTHER, pipeline=STEPS)]), 2),
        (lambda data: dict(type='RepeatDataset', times=2, dataset=data), 1),
        (lambda data: dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=data), 1),
        (lambda data: dict(type='MultiImageMixDataset', dataset=data, pipeline=[]), 1),
        (lambda data: dict(type='CBGSDataset', dataset=dict(type='ConcatDataset', datasets=[data])), 1),
        (lambda data: dict(type='Mine', wrapped=data), 1),
        (lambda data: [data, dict(OTHER, pipeline=STEPS)], 2),
    ],
)
@pytest.mark.parametrize('loader', ['test_dataloader', 'val_dataloader'])
def test_the_pipeline_and_classes_are_of_the_data_set_in_wrappers(wrap, joined, loader, tmp_path, capsys):
    steps = [LOAD, dict(type='Resize', scale=(320, 320), keep_ratio=True), PACK]
    cfg = config3('atss/atss_r50_fpn_1x_coco.py', steps=steps, metainfo=dict(classes=('a', 'b')))
    plain = to_mmdet2_config(cfg)
    content = cfg.to_dict()
    dataset = content.pop('test_dataloader')['dataset']
    content |= {loader: dict(dataset=wrap(dataset)), 'test_pipeline': STEPS}
    made = to_mmdet2_config(Config(content, cfg_text='model', filename=str(tmp_path)))
    assert configs.keyed_test_pipeline(made)[1] == plain.data.test.pipeline
    assert configs.test_dataset(made) == plain.data.test
    assert len([*configs.test_datasets(made)]) == joined
    assert ('several pipelines' in capsys.readouterr().err) == (joined == 2)


def test_the_steps_of_a_wrapper_follow_those_of_its_data_set():
    load, resize = [LOAD], dict(type='Resize', scale=(320, 320), keep_ratio=True)
    cfg, inner = config3('atss/atss_r50_fpn_1x_coco.py'), dict(OTHER, pipeline=load)
    wrapper = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[resize, PACK])
    cfg.test_dataloader.dataset = wrapper
    assert to_mmdet2_config(cfg).data.test.pipeline == to_mmdet2_pipeline([*load, resize, PACK], PREPROCESSOR)


def test_an_augmented_test_of_mmdet_3_is_refused_as_that_of_mmdet_2_with_advice_that_works():
    choices = [
        [dict(type='Resize', scale=(size, size), keep_ratio=True) for size in (640, 320)],
        [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)],
        [PACK],
    ]
    steps = [LOAD, dict(type='TestTimeAug', transforms=choices)]
    cfg = config3('atss/atss_r50_fpn_1x_coco.py', steps=steps)
    del cfg.test_dataloader.dataset['pipeline']
    cfg.tta_pipeline = steps
    made = to_mmdet2_config(cfg)
    for key, value in dict(flip=False, img_scale=(640, 640)).items():
        with pytest.raises(ConfigError, match=rf'--cfg-options .*{key}'):
            rule_from_pipeline(*reversed(configs.keyed_test_pipeline(made)))
        made.data.test.pipeline[1][key] = value
    plain = [LOAD, dict(type='Resize', scale=(640, 640), keep_ratio=True), PACK]
    assert made.data.test.pipeline == to_mmdet2_pipeline(plain, PREPROCESSOR)
    choices[0][1]['keep_ratio'] = False
    with pytest.raises(ConfigError, match=r'test_pipeline\.1\.transforms'):
        to_mmdet2_pipeline(steps, PREPROCESSOR)


def test_the_teacher_of_a_distilled_detector_is_left_out():
    cfg = config3('ld/ld_r18_gflv1_r101_fpn_coco_1x.py')
    made = to_mmdet2_config(cfg)
    assert made.model.type == 'SingleStageDetector' and not any('teacher' in key for key in made.model)


def bgr(**changes):
    return {**PREPROCESSOR, **changes}


@pytest.mark.parametrize(
    ('pad', 'expected'),
    [
        (dict(size=(1344, 800)), dict(size=(800, 1344))),
        (
            dict(size_divisor=32, pad_val=dict(img=114, seg=255)),
            dict(size_divisor=32, pad_val=dict(img=(114, 114, 114), seg=255)),
        ),
        (dict(size_divisor=32, pad_val=7), dict(size_divisor=32, pad_val=dict(img=(7, 7, 7)))),
    ],
)
def test_a_pad_of_the_pipeline_pads_as_that_of_mmdet_3(pad, expected):
    steps = [*STEPS[:2], dict(type='Pad', **pad), PACK]
    made = to_mmdet2_pipeline(steps, bgr(pad_size_divisor=1))[1]['transforms']
    assert [step for step in made if step['type'] == 'Pad'] == [dict(type='Pad', **expected)]


def test_what_mmdet_3_does_by_default_is_written_out():
    resize, crop = dict(type='Resize', scale=(1333, 800)), dict(type='RandomCenterCropPad', test_mode=True)
    load, flips = to_mmdet2_pipeline([LOAD, resize, PACK], bgr(pad_value=114))
    made = {step['type']: step for step in flips['transforms']}
    assert flips['img_scale'] == (1333, 800) and not made['Resize']['keep_ratio']
    assert made['Pad'] == dict(type='Pad', size_divisor=32, pad_val=dict(img=[114.0] * 3))
    load, flips = to_mmdet2_pipeline([LOAD, crop, dict(PACK, meta_keys=['border'])], dict(bgr_to_rgb=True))
    made = {step['type']: step for step in flips['transforms']}
    assert load == dict(type='LoadImageFromFile', to_float32=True) and flips['scale_factor'] == 1.0
    assert made['Resize']['keep_ratio'] and 'border' in made['Collect']['meta_keys']
    assert made['Normalize'] == dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=True)


def steps_with(index, **changes):
    return [dict(step, **changes) if number == index else step for number, step in enumerate(STEPS)]


@pytest.mark.parametrize(
    ('preprocessor', 'steps', 'message'),
    [
        (bgr(rgb_to_bgr=True), STEPS, r'model\.data_preprocessor\.rgb_to_bgr=True'),
        (bgr(type='Mine'), STEPS, r"model\.data_preprocessor\.type='Mine'"),
        (bgr(to_grey=True), STEPS, r'model\.data_preprocessor\.to_grey=True'),
        (PREPROCESSOR, steps_with(1, type='FixScaleResize'), r"test_pipeline\.1\.type='FixScaleResize'"),
        (PREPROCESSOR, steps_with(1, blur=True), r'test_pipeline\.1\.blur=True'),
        (PREPROCESSOR, [LOAD, dict(type='RandomFlip', prob=0.5), PACK], r'test_pipeline\.1\.prob=0\.5'),
        (PREPROCESSOR, steps_with(1, scale=None, scale_factor=0.5), r'test_pipeline: .*scale_factor=0\.5'),
        (PREPROCESSOR, [STEPS[1], LOAD, PACK], r'test_pipeline: has the order Resize, LoadImageFromFile'),
        (PREPROCESSOR, [LOAD, dict(type='Pad', size_divisor=20), PACK], r'model\..*\.pad_size_divisor=32'),
    ],
)
def test_what_is_not_known_is_refused_by_its_key(preprocessor, steps, message):
    with pytest.raises(ConfigError, match=rf'^config3\.py: {message}'):
        to_mmdet2_config(config3('atss/atss_r50_fpn_1x_coco.py', preprocessor, steps))


STACK = dict(num_layers=1, blur=1)
DETR = dict(type='DETR', neck=dict(in_channels=[8]), bbox_head={}, num_queries=1, encoder=STACK)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='YOLACT', mask_head=dict(with_seg_branch=False), test_cfg=dict(mask_thr=0.3)), 'mask_thr'),
        (dict(type='ConditionalDETR', decoder={}, num_patterns=3), r'model\.num_patterns=3'),
        (DETR, r'model\.encoder\.blur=1'),
    ],
)
def test_a_setting_that_mmdet_2_lacks_is_refused_by_its_key(model, message):
    with pytest.raises(ConfigError, match=message):
        to_mmdet2_model(model)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('type', 'RTMDet', r"model\.bbox_head\.type='ATSSHead'"),
        ('type', 'GLIP', r"model\.type='GLIP': .* \(73 of the 823 "),
        (
            'backbone.type',
            'mmpretrain.TIMMBackbone',
            r"model\.backbone\.type='TIMMBackbone': .* \(2 of the 823 ",
        ),
    ],
)
def test_a_detector_or_part_of_mmdet_3_alone_is_refused_by_name(key, value, message):
    cfg = config3('atss/atss_r50_fpn_1x_coco.py')
    cfg.merge_from_dict({f'model.{key}': value})
    with pytest.raises(ConfigError, match=rf'^config3\.py: {message}'):
        to_mmdet2_config(cfg)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model=None), 'model=None'),
        (dict(model=dict(type='DETR', data_preprocessor=PREPROCESSOR)), "has no 'neck'"),
        (dict(test_dataloader=dict()), 'has neither test_dataloader'),
        (dict(test_dataloader=None, model=dict(type='ATSS')), 'is not a config of mmdet 3'),
    ],
)
def test_a_config_without_a_part_is_refused_by_the_part(changes, message):
    cfg = config3('atss/atss_r50_fpn_1x_coco.py')
    for key, value in changes.items():
        del cfg._cfg_dict[key]
        if value is not None:
            cfg[key] = value
    with pytest.raises(ConfigError, match=rf'^config3\.py: {message}'):
        to_mmdet2_config(cfg)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no such config'),
        ('model = [', 'syntax error'),
        ('model = dict(depth=1 / 0)', 'ZeroDivisionError'),
        ("_base_ = 'mmdet::atss/a.py'", "'mmdet::atss/a.py'"),
        ("_base_ = ['none.py']", r"none\.py'"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_by_file_and_reason(text, message, tmp_path):
    path = tmp_path / 'c3.py'
    if text:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf'c3\.py: .*{message}'):
        read_mmdet3_config(path)


@pytest.mark.parametrize(
    'text', [None, ' ', 'model.type = 1', 'import os', 'model = os.getcwd()', 'model = [']
)
def test_the_config_of_a_checkpoint_that_is_no_plain_text_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r'epoch_1\.pth: .*meta\.cfg.*pass the config'):
        read_mmdet3_config(checkpoint_with(tmp_path / 'epoch_1.pth', text))


def test_the_page_has_the_number_of_configs_of_each_refused_kind():
    page = (Path(__file__).resolve().parents[3] / 'docs/mmdet3.md').read_text()
    rows = [f'| {count} | {kind} |\n' for kind, (count, _) in REFUSED.items()]
    assert [row for row in page.splitlines(keepends=True) if row in rows] == sorted(
        rows, key=lambda row: -int(row.split()[1])
    )
    assert f'builds {CONFIGS - sum(count for count, _ in REFUSED.values())} of them' in page


def checkpoint_with(path, text):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(cfg=text)), path)
    return path


def test_the_config_that_a_checkpoint_keeps_is_read_as_data(tmp_path):
    cfg = config3('atss/atss_r50_fpn_1x_coco.py')
    path = checkpoint_with(tmp_path / 'epoch_12.pth', cfg.pretty_text)
    kept = read_mmdet3_config(path)
    assert kept.model.to_dict() == cfg.model.to_dict() and kept.filename == str(path)
    assert to_mmdet2_config(kept).pretty_text == to_mmdet2_config(cfg).pretty_text
