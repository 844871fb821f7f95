"""Configs: where they are found, what they say, and what their hash depends on."""

import sys
from pathlib import Path

import pytest

from mmdeploy_ext.base import cli, config
from mmdeploy_ext.base.config import config_sha256, load_config
from mmdeploy_ext.base.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = str(REPOSITORY / 'configs/demo/atss_toy.py')
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Normalize', mean=[0], std=[1])]


def test_overrides_reach_nested_keys_and_list_elements():
    webcam = {'data.test.pipeline.0.type': 'LoadImageFromWebcam'}
    cfg = load_config(TOY, {'model.test_cfg.score_thr': 0.3, **webcam})
    assert cfg.model.test_cfg.score_thr == 0.3 and cfg.model.test_cfg.nms_pre == 1000
    assert config.test_pipeline(cfg)[0]['type'] == 'LoadImageFromWebcam'


def test_steps_with_the_scope_of_mmdet_are_those_without_it():
    scoped = {'0.type': 'mmdet.LoadImageFromFile', '1.type': 'mmdet.MultiScaleFlipAug'}
    scoped |= {'1.transforms.0.type': 'mmdet.Resize'}
    cfg = load_config(TOY, {f'data.test.pipeline.{key}': kind for key, kind in scoped.items()})
    assert config.test_pipeline(cfg) == config.test_pipeline(load_config(TOY))


def test_a_base_is_read_anew_after_a_change_and_belongs_to_the_config_that_read_it(tmp_path):
    base, path = tmp_path / 'base.py', tmp_path / 'config.py'
    path.write_text("_base_ = ['base.py']\n")
    base.write_text('model = dict(neck=dict(num_outs=5))\n')
    load_config(str(path)).model.neck.num_outs = 4
    assert load_config(str(path)).model.neck.num_outs == 5
    base.write_text('model = dict(neck=dict(num_outs=3))\n')
    assert load_config(str(path)).model.neck.num_outs == 3


def upstream_config(folder, base='_base_/default_runtime.py'):
    """A config in the shape of StreamPETR's, whose bases lie in a checkout of mmdet3d beside the project."""
    path = folder / 'projects/configs/StreamPETR/x.py'
    path.parent.mkdir(parents=True)
    path.write_text(
        f"_base_ = ['../../../mmdetection3d/configs/_base_/datasets/nus-3d.py',\n"
        f"          '../../../mmdetection3d/configs/{base}']\n"
        f"model = dict(type='Petr3D')\ndata = dict(test=dict(type='CustomNuScenesDataset'))\n"
    )
    return path


def test_bases_in_a_checkout_of_mmdet3d_are_those_of_the_installed_one(tmp_path):
    cfg = load_config(str(upstream_config(tmp_path)))
    assert cfg.data.test.type == 'CustomNuScenesDataset' and cfg.data.test.box_type_3d == 'LiDAR'
    assert cfg.workflow == [('train', 1)]


@pytest.mark.parametrize(
    'text',
    [
        'data = dict(test=dict(pipeline={}))',
        'data = dict(test=dict(type="RepeatDataset", dataset=dict(pipeline={})))',
        'data = dict(test=[dict(dataset=dict(pipeline={}))], val=dict(pipeline=[1]))',
        'test_pipeline = {}',
    ],
    ids=['test', 'wrapped', 'list of wrapped', 'alone'],
)
def test_the_test_pipeline_is_found_wherever_it_is_kept(text, tmp_path):
    (tmp_path / 'x.py').write_text(text.format(PIPELINE))
    cfg = load_config(str(tmp_path / 'x.py'))
    assert config.test_pipeline(cfg) == PIPELINE


@pytest.mark.parametrize(
    ('override', 'changes'),
    [
        ({'model.bbox_head.num_classes': 7}, True),
        ({'model.test_cfg.nms.iou_threshold': 0.5}, True),
        ({'data.test.pipeline.1.transforms.2.to_rgb': False}, True),
        ({'test_cfg': dict(score_thr=0.3)}, True),
        ({'optimizer.lr': 0.1}, False),
        ({'data.test.ann_file': 'x.json', 'data.samples_per_gpu': 1}, False),
        ({'backend_config': dict(type='TorchBackend')}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_the_hash_is_that_of_model_and_test_pipeline(override, changes):
    assert (config_sha256(load_config(TOY, override)) != config_sha256(load_config(TOY))) == changes


@pytest.mark.parametrize('above', [True, False])
def test_modules_of_a_config_are_those_of_its_repository_or_of_the_working_directory(
    above, tmp_path, monkeypatch
):
    name = f'plugin_{"above" if above else "beside"}'
    repository, folder = tmp_path / 'repository', tmp_path / 'folder'
    for path in (repository / 'configs', repository / name, folder):
        path.mkdir(parents=True)
    (repository / name / 'heads.py').write_text('LOADED = True\n')
    config = (repository / 'configs' if above else folder) / 'x.py'
    config.write_text(
        f'from {name}.heads import LOADED\n'
        f"model = dict(type=str(LOADED))\ncustom_imports = dict(imports=['{name}.heads'])\n"
    )
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.chdir(folder if above else repository)
    assert load_config(str(config)).model.type == 'True'
    assert sys.modules[f'{name}.heads'].__file__ == str(repository / name / 'heads.py')


def test_without_augmentation_one_scale_stays_that_of_1_or_the_first():
    step = dict(
        type='MultiScaleFlipAug3D', flip=True, pts_scale_ratio=[0.95, 1.0], img_scale=[(8, 4), (6, 3)]
    )
    (note,) = config.without_augmentation(dict(data=dict(test=dict(dataset=dict(pipeline=[step])))))
    assert step == dict(type='MultiScaleFlipAug3D', flip=False, pts_scale_ratio=1.0, img_scale=(8, 4))
    assert all(name in note for name in ('flip', 'scales', 'scales of points'))


MMDET3 = "x = _base_.y\nmodel = dict(type='ATSS', data_preprocessor=dict())\n"
PYTHON = 'with read_base():\n    from .{} import *\n'


@pytest.mark.parametrize(
    ('files', 'named'),
    [
        (dict(a="_base_ = ['b.py']\n" + MMDET3, b="_base_ = ['a.py']\n"), 'base of itself'),
        (dict(a="_base_ = 'b.py'\n", b="_base_ = 'a.py'\n"), 'base of itself'),
        (dict(a=PYTHON.format('b'), b=PYTHON.format('a')), 'base of itself'),
        ({f'a{i or ""}': f"_base_ = 'a{i + 1}.py'\n" for i in range(2000)}, 'more than 50 bases'),
        (dict(a="model = dict(type='ATSS')\nmodel['a'] = model\n"), 'contains itself'),
        (dict(a="_base_ = ['b.py']\n" + MMDET3 + "model['a'] = model\n", b='y = 1\n'), 'contains itself'),
        (dict(a=PYTHON.format('b') + "model = {}\nmodel['a'] = model\n", b='y = 1\n'), 'contains itself'),
        (dict(a='import sys\nsys.exit(0)\n'), 'ends this process'),
        (dict(a="_base_ = ['b.py']\n" + MMDET3 + 'raise SystemExit\n', b='y = 1\n'), 'ends this process'),
    ],
)
def test_rings_of_bases_values_in_themselves_and_exits_are_refused(tmp_path, files, named):
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config(str(tmp_path / 'a.py'))


def test_a_config_of_the_installed_library_has_a_short_name_which_the_refusal_of_its_file_name_says():
    name = 'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'
    path = config.config_path(name)
    assert Path(path).is_file() and config.config_path(path) == path
    assert cli.ArgumentParser().parse_known_args([name])[1] == [path]
    with pytest.raises(ConfigError, match=f'no such config file; the installed one is {name}'):
        load_config('faster_rcnn_r50_fpn_1x_coco.py')
