"""StreamPETR's configs: all load and build, leaves change the engine alone, upstream's load unchanged."""

import pickle
from pathlib import Path

import onnx
from mmdet3d.models import build_model

import streampetr_golden as seeded
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import read_config, resolve
from mmdeploy_ext.families.detector_files import make_metadata

REPOSITORY = Path(__file__).resolve().parents[4]
FOLDER = REPOSITORY / 'projects/configs/StreamPETR'
R50 = 'stream_petr_r50_704_bs2_seq_428q_nui_60e'

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


def test_the_released_r50_has_exactly_the_keys_and_shapes_of_its_checkpoint():
    found = build_model(load(R50).model).state_dict()
    found = {
        key: (list(value.shape), str(value.dtype).removeprefix('torch.')) for key, value in found.items()
    }
    assert list(found.items()) == list(seeded.golden_keys().items())


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


def test_without_num_cams_the_first_sample_of_the_data_set_tells_the_cameras(tmp_path):
    cfg = load('stream_petr_toy')
    family = find_family(cfg)
    infos = [dict(cams={name: {} for name in ('left', 'front', 'right')}), dict(cams={})]
    (tmp_path / 'infos.pkl').write_bytes(pickle.dumps(dict(infos=infos)))
    cfg.data.test.ann_file = str(tmp_path / 'infos.pkl')
    assert family.preprocess_rule(cfg).num_cameras == family.build(cfg).input_sizes[0] == 3
    assert family.preprocess_rule(cfg.merge_from_dict(dict(num_cams=6)) or cfg).num_cameras == 6
    (tmp_path / 'damaged.pkl').write_bytes(b'1')
    for file in ('none.pkl', 'damaged.pkl'):
        other = load('stream_petr_toy')
        other.data.test.ann_file = str(tmp_path / file)
        assert family.preprocess_rule(other).num_cameras == 6


def test_without_num_cams_and_data_set_an_exported_file_tells_the_cameras(tmp_path):
    config = tmp_path / 'c.py'
    config.write_text(
        f"_base_ = ['{FOLDER}/stream_petr_toy.py']\ndata = dict(test=dict(ann_file='none.pkl'))\n"
    )
    exported = read_config(config, cfg_options=dict(num_cams=3))
    kind_of(exported.family).build(exported)
    options = resolve(exported.family.choose(opset=17), exported.model, exported.rule)
    graph = contract_of(exported.family, options).graphs(exported.model, options)[0]
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'g', [], []))
    onnx.helper.set_model_props(model, make_metadata(exported, options, graph).to_props())
    onnx.save(model, tmp_path / 'm.onnx')
    for file, cameras in ((tmp_path, 3), (tmp_path / 'm.onnx', 3), ('', 6)):
        detector = read_config(config, file=str(file))
        assert detector.family.preprocess_rule(detector.cfg).num_cameras == cameras
