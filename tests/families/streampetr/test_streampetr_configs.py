"""StreamPETR's configs: all load and build, leaves change the engine alone, upstream's load unchanged."""

import json
from pathlib import Path

import pytest
from mmdet3d.models import build_model

from mmdeploy_ext.core.config import config_sha256, load_config
from mmdeploy_ext.families.base import find_family

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / 'projects/configs/StreamPETR'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
R50 = 'stream_petr_r50_704_bs2_seq_428q_nui_60e'
GOLDEN = REPOSITORY.parent / 'shared/golden/streampetr/state_dict.json'

UPSTREAM = """
_base_ = ['../../../mmdetection3d/configs/_base_/datasets/nus-3d.py',
          '../../../mmdetection3d/configs/_base_/default_runtime.py']
plugin = True
plugin_dir = 'projects/mmdet3d_plugin/'
backbone_norm_cfg = dict(type='LN', requires_grad=True)
class_names = ['car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle',
               'pedestrian', 'traffic_cone']
collect_keys = ['lidar2img', 'intrinsics', 'extrinsics', 'timestamp', 'img_timestamp', 'ego_pose',
                'ego_pose_inv']
input_modality = dict(use_lidar=False, use_camera=True, use_radar=False, use_map=False, use_external=True)
ida_aug_conf = dict(resize_lim=(0.38, 0.55), final_dim=(256, 704), bot_pct_lim=(0.0, 0.0), rot_lim=(0.0, 0.0),
                    H=900, W=1600, rand_flip=True)
model = {model}
test_pipeline = [
    dict(type='LoadMultiViewImageFromFiles', to_float32=True),
    dict(type='ResizeCropFlipRotImage', data_aug_conf=ida_aug_conf, training=False),
    dict(type='NormalizeMultiviewImage', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
         to_rgb=True),
    dict(type='PadMultiViewImage', size_divisor=32),
    dict(type='MultiScaleFlipAug3D', img_scale=(1333, 800), pts_scale_ratio=1, flip=False, transforms=[
        dict(type='PETRFormatBundle3D', collect_keys=collect_keys, class_names=class_names, with_label=False),
        dict(type='Collect3D', keys=['img'] + collect_keys,
             meta_keys=('filename', 'pad_shape', 'scene_token'))])]
data = dict(
    samples_per_gpu=2,
    val=dict(type='CustomNuScenesDataset', pipeline=test_pipeline,
             collect_keys=collect_keys + ['img', 'img_metas'],
             queue_length=1, ann_file='{ann_file}', classes=class_names, modality=input_modality),
    shuffler_sampler=dict(type='InfiniteGroupEachSampleInBatchSampler'),
    nonshuffler_sampler=dict(type='DistributedSampler'))
runner = dict(type='IterBasedRunner', max_iters=105480)
load_from = None
"""


def load(name):
    return load_config(str(FOLDER / f'{name}.py'))


@pytest.mark.suite('stream_petr_r50_704_bs2_seq_428q_nui_60e', 'stream_petr_toy_onnx')
@pytest.mark.parametrize('name', NAMES)
def test_every_config_loads_and_builds(name):
    cfg = load(name)
    model = build_model(cfg.model, train_cfg=cfg.get('train_cfg'))
    assert type(model).__name__ == 'Petr3D' and cfg.data.test.pipeline[1].type == 'ResizeCropFlipRotImage'
    assert sum(p.numel() for p in model.parameters()) * 4 < 8e6 or 'toy' not in name


@pytest.mark.suite('stream_petr_toy')
@pytest.mark.parametrize('name', ['stream_petr_toy', R50])
def test_a_leaf_with_an_engine_has_the_hash_of_its_base(name):
    hashes = {config_sha256(load(f'{name}{end}')) for end in ('', '_pth', '_onnx')}
    assert len(hashes) == 1
    assert load(f'{name}_pth').backend_config.type == 'TorchBackend'
    assert load(f'{name}_onnx').backend_config.contract == 'deploy'


@pytest.mark.skipif(not GOLDEN.is_file(), reason='skipped: ../shared/golden/streampetr not found')
def test_the_released_r50_has_exactly_the_keys_and_shapes_of_its_checkpoint():
    golden = json.loads(GOLDEN.read_text())
    cfg = load(R50)
    found = {key: list(value.shape) for key, value in build_model(cfg.model).state_dict().items()}
    entries = golden.get('keys', golden.get('state_dict', golden))
    pairs = (
        entries.items()
        if isinstance(entries, dict)
        else ((entry.get('key', entry.get('name')), entry) for entry in entries)
    )
    assert found == {key: list(value['shape']) for key, value in pairs}


def test_flash_attention_changes_the_type_of_one_attention_alone():
    plain, flash = load(R50), load('stream_petr_r50_flash_704_bs2_seq_428q_nui_60e')
    decoders = [cfg.model.pts_bbox_head.transformer.decoder for cfg in (plain, flash)]
    attentions = [decoder.transformerlayers.attn_cfgs for decoder in decoders]
    assert [a.type for a in attentions[0]] == ['MultiheadAttention', 'PETRMultiheadAttention']
    assert [a.type for a in attentions[1]] == ['MultiheadAttention', 'PETRMultiheadFlashAttention']
    attentions[1][1].type = attentions[0][1].type
    assert plain.model == flash.model


def test_a_config_in_upstreams_shape_loads_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / 'projects/configs/StreamPETR/stream_petr_r50_flash.py'
    path.parent.mkdir(parents=True)
    flash = load('stream_petr_r50_flash_704_bs2_seq_428q_nui_60e')
    text = UPSTREAM.replace('{model}', repr(flash.model.to_dict())).replace('{ann_file}', 'x.pkl')
    path.write_text(text + "data['test'] = data['val']\n")
    cfg = load_config(str(path))
    assert cfg.data.val.box_type_3d == 'LiDAR' and cfg.data.val.test_mode and cfg.data.val.data_root
    assert cfg.data.val.pipeline[1].data_aug_conf.final_dim == (256, 704)
    assert type(build_model(cfg.model)).__name__ == 'Petr3D'
    family = find_family(cfg)
    family.check(cfg, family.choose())
    rule = family.preprocess_rule(cfg)
    assert (rule.input_size, rule.crop, rule.resized) == ((256, 704), (140, 0), (396, 704))
    assert rule.num_cameras == 6
