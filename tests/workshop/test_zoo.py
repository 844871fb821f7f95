"""The zoo: every config gets its row, whatever its process does, and what was proven is not proven again."""

import ast
from pathlib import Path

import pytest

from dev.pages import zoo as pages
from dev.zoo import app as zoo_app
from dev.zoo import configs, records
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.files import read_json

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODYS = "model = dict(type='Nobodys', backbone=dict(type='ResNet'), bbox_head=dict(type='NobodysHead'))\n"
TOY = f"_base_ = ['{REPOSITORY}/configs/demo/atss_toy.py']\n"
AUGMENTED = """
flips = dict(type='MultiScaleFlipAug', img_scale=[(96, 64), (128, 96)], flip=True, transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='Normalize', mean=[1.0] * 3, std=[57.0] * 3),
    dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img'])])
data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), flips]))
"""


def seeded(cfg, family):
    """Return a model with seeded weights; configs whose name says so end badly."""
    from dev.seeded.weights import seeded_model

    name = Path(cfg.filename).stem
    if name == 'raises':
        raise RuntimeError('MaskedConv2d is not implemented on CPU')
    return seeded_model(cfg, family)


def run(folder, *arguments):
    given = [
        str(folder / 'configs'),
        '--out',
        str(folder / 'out'),
        '--height',
        '128',
        '--width',
        '160',
        '--jobs',
        '2',
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo_app, 'seeded', seeded)
        status = zoo_app.main([*given, *arguments])
    found = records.zoo_records(read_json(folder / 'out' / 'zoo.json'))
    return status, {Path(one.config).stem: one for one in found}


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    """Return a folder whose zoo was run once, its exit status and its records."""
    folder = tmp_path_factory.mktemp('zoo')
    (folder / 'configs' / '_base_').mkdir(parents=True)
    own = TOY + 'data = dict(test=dict(own={!r}))\n'
    content = {name: own.format(name) for name in ('raises',)}
    content.update(
        nobodys=NOBODYS,
        broken='model = dict(\n',
        data='runs = 3\n',
        toy=TOY + AUGMENTED,
        toy_longer=TOY
        + AUGMENTED
        + 'model = dict(train_cfg=dict(pos_weight=2))\nrunner = dict(max_epochs=36)\n',
        toy_onnx=TOY + 'backend_config = dict()\n',
    )
    for name, text in content.items():
        (folder / 'configs' / f'{name}.py').write_text(text)
    (folder / 'configs' / '_base_' / 'base.py').write_text(NOBODYS)
    return folder, *run(folder)


@pytest.mark.matrix
def test_a_zoo_says_of_each_config_what_became_of_it(zoo):
    _, status, found = zoo
    reasons = {name: one.fixed.reason for name, one in found.items() if not one.proven}
    assert reasons == dict(
        raises=records.NO_KERNEL, nobodys=records.NO_FAMILY, broken=records.NOT_BUILT,
    )  # fmt: skip
    assert set(reasons.values()) <= set(records.REASONS)
    assert status == 0
    for outcome in (found['toy'].fixed, found['toy'].dynamic):
        assert outcome.proven
        assert outcome.reference == outcome.matched > 100
        assert outcome.fewest >= 20
        assert outcome.worst_iou > 0.999
    assert found['toy'].parts == dict(detector='ATSS', backbone='ResNet', neck='FPN', head='ATSSHead')
    assert found['toy'].notes == ('test-time augmentation left out: flip, scales',)


@pytest.mark.parametrize(
    'other',
    [
        'model.bbox_head.loss_cls.use_sigmoid=False',
        'data.test.pipeline.1.img_scale=(96,64)',
        'model.test_cfg.nms_pre=7',
    ],
)
def test_configs_that_differ_in_anything_else_are_not(other):
    key, value = other.split('=')
    cfg = load_config(f'{REPOSITORY}/configs/demo/atss_toy.py')
    before = configs.test_digest(cfg)
    cfg.merge_from_dict({'model.train_cfg.pos_weight': 3, 'model.backbone.init_cfg': None})
    cfg.merge_from_dict({'data.test.ann_file': 'elsewhere.json', 'data.test.img_prefix': 'elsewhere/'})
    assert configs.test_digest(cfg) == before
    cfg.merge_from_dict({key: ast.literal_eval(value)})
    assert configs.test_digest(cfg) != before


def test_the_installed_configs_are_those_of_mmdet_without_bases():
    names = [path.relative_to(configs.installed_folder()).as_posix() for path in configs.config_files([])]
    assert 'atss/atss_r50_fpn_1x_coco.py' in names
    assert not [name for name in names if '_base_' in name]
    assert [path.name for path in configs.config_files(['atss/*r50*'])] == ['atss_r50_fpn_1x_coco.py']


def test_the_pages_of_the_repository_are_what_the_records_give():
    lidar, rotated, pictures = (read_json(path) for path in pages.DATA.values())
    found = [*records.zoo_records(pictures), *records.zoo_records(lidar)]
    translated = read_json(pages.MMDET3)['configs']['families']
    overview = pages.overview(found, pictures['versions'], translated)
    assert overview in (REPOSITORY / 'docs/zoo.md').read_text()
    assert pages.CONFIGS.read_text() == pages.configs_page(found)
    readme = (REPOSITORY / 'projects/mmrotate/README.md').read_text()
    assert pages.rotated_section(records.zoo_records(rotated)) in readme
