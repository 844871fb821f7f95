"""`tools/convert.py mmdet3`: a config and a checkpoint of mmdet 3 become those of mmdet 2.28."""

import json
import pprint
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv import Config

from marking import in_suite
from mmdeploy_ext.base.config import config_sha256, load_config, mmdet_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.families.detector import load
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_name
from model_shapes import model_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDED = json.loads((REPOSITORY / 'tests/upstream/weights/mmdet3_names.json').read_text())
DETR = RECORDED['detr/detr_r18_8xb2-500e_coco']
PIPELINE = """
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root='data/coco/', ann_file='val.json', data_prefix=dict(img='val/'),
    metainfo=dict(classes=('a', 'b')), pipeline=test_pipeline))
"""


def run_tool(*words):
    before = list(sys.path)
    try:
        main = runpy.run_path(str(REPOSITORY / 'tools/convert.py'))['main']
        return main(['mmdet3', *(str(word) for word in words)])
    finally:
        sys.path[:] = before


@pytest.fixture
def config3(tmp_path):
    path = tmp_path / 'detr3.py'
    path.write_text(f'model = {pprint.pformat(DETR["model"])}\n{PIPELINE}')
    return path


def write_checkpoint(path, config, **changes):
    """Write what mmengine's Runner does for the DETR of a translated config, tensors of ones."""
    backbone = {key: shape for key, shape in model_shapes(config).items() if key.startswith('backbone.')}
    weights = {key: torch.ones(tuple(shape)) for key, shape in {**backbone, **DETR['names']}.items()}
    meta = dict(epoch=12, mmengine_version='0.10.7', dataset_meta=dict(classes=('a', 'b')))
    torch.save(dict(meta=meta, state_dict={**weights, **changes}, message_hub={}), path)
    return weights


def test_a_config_and_then_its_checkpoint_are_converted(config3, tmp_path, capsys):
    config, source, target = tmp_path / 'detr2.py', tmp_path / 'epoch_12.pth', tmp_path / 'detr2.pth'
    assert run_tool(config3, config) == 0
    assert capsys.readouterr().out.startswith(f'{config}: a config of mmdet 2.28')
    cfg = load_config(str(config))
    assert cfg.data.test.classes == ('a', 'b') and cfg.data.test.ann_file == 'data/coco/val.json'
    weights = write_checkpoint(source, cfg)
    assert run_tool(source, target, '--config', config) == 0
    assert f'{len(weights)} tensors' in capsys.readouterr().out
    loaded = load_checkpoint(target)
    assert loaded.state_dict.keys() == {to_mmdet2_name(key, 'DETR') for key in weights}
    assert loaded.meta == dict(epoch=12, mmengine_version='0.10.7', CLASSES=('a', 'b'))
    assert run_tool(source, target, '--config', config3) == 0
    assert load_checkpoint(target).state_dict.keys() == loaded.state_dict.keys()
    assert run_tool(source, target) == 2
    assert '--config' in capsys.readouterr().err


def test_a_config_of_mmdet_3_is_read_as_its_translation_with_its_checkpoint(config3, tmp_path):
    config, checkpoint = tmp_path / 'detr2.py', tmp_path / 'epoch_12.pth'
    assert run_tool(config3, config) == 0
    options = {'model.test_cfg.max_per_img': 7}
    cfg = load_config(str(config3), options)
    assert config_sha256(cfg) == config_sha256(load_config(str(config), options))
    write_checkpoint(checkpoint, cfg)
    detector = load(config3, checkpoint)
    assert detector.checkpoint_sha256 == sha256_file(checkpoint)
    assert all(bool((weight == 1).all()) for weight in detector.model.bbox_head.transformer.parameters())


def test_a_plugin_of_mmengine_is_named_where_the_model_needs_it(config3):
    plain, other = config3.read_text(), "model['backbone'] = dict(type='MyBackbone')\n"
    text = plain + "custom_imports = dict(imports=['my_backbones'])\n"
    config3.write_text(text)
    assert load_config(str(config3)).model.type == 'DETR'  # its model does without
    config3.write_text(text + other)
    with pytest.raises(ConfigError, match='my_backbones'):
        load_config(str(config3))
    config3.write_text(f'{plain}{other}')
    with pytest.raises(ConfigError, match='MyBackbone') as error:
        load_config(str(config3))
    assert 'custom_imports' not in str(error.value)


OF_MMDET_2 = [
    'autoassign/autoassign_r50_fpn_8x2_1x_coco.py',
    'cascade_rpn/crpn_r50_caffe_fpn_1x_coco.py',
    'centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py',
    'cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py',
    'ddod/ddod_r50_fpn_1x_coco.py',
    'double_heads/dh_faster_rcnn_r50_fpn_1x_coco.py',
    'dynamic_rcnn/dynamic_rcnn_r50_fpn_1x_coco.py',
    'fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py',
    'foveabox/fovea_r50_fpn_4x4_1x_coco.py',
    'fpg/retinanet_r50_fpg_crop640_50e_coco.py',
    'free_anchor/retinanet_free_anchor_r50_fpn_1x_coco.py',
    'fsaf/fsaf_r50_fpn_1x_coco.py',
    'gfl/gfl_r50_fpn_1x_coco.py',
    'gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py',
    'grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco.py',
    'guided_anchoring/ga_retinanet_r50_fpn_1x_coco.py',
    'guided_anchoring/ga_rpn_r50_fpn_1x_coco.py',
    'htc/htc_r50_fpn_1x_coco.py',
    'lad/lad_r101_paa_r50_fpn_coco_1x.py',
    'ms_rcnn/ms_rcnn_r50_fpn_1x_coco.py',
    'nas_fcos/nas_fcos_nashead_r50_caffe_fpn_gn-head_4x4_1x_coco.py',
    'paa/paa_r50_fpn_1x_coco.py',
    'panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py',
    'pisa/pisa_mask_rcnn_r50_fpn_1x_coco.py',
    'pisa/pisa_retinanet_r50_fpn_1x_coco.py',
    'pisa/pisa_ssd300_coco.py',
    'point_rend/point_rend_r50_caffe_fpn_mstrain_1x_coco.py',
    'pvt/retinanet_pvt-t_fpn_1x_coco.py',
    'queryinst/queryinst_r50_fpn_1x_coco.py',
    'reppoints/reppoints_moment_r50_fpn_1x_coco.py',
    'sabl/sabl_cascade_rcnn_r50_fpn_1x_coco.py',
    'sabl/sabl_retinanet_r50_fpn_1x_coco.py',
    'scnet/scnet_r50_fpn_1x_coco.py',
    'solo/decoupled_solo_light_r50_fpn_3x_coco.py',
    'solo/decoupled_solo_r50_fpn_1x_coco.py',
    'solo/solo_r50_fpn_1x_coco.py',
    'solov2/solov2_r50_fpn_1x_coco.py',
    'ssd/ssd300_coco.py',
    'swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'tood/tood_r50_fpn_1x_coco.py',
    'tridentnet/tridentnet_r50_caffe_1x_coco.py',
    'vfnet/vfnet_r50_fpn_1x_coco.py',
    'yolo/yolov3_d53_320_273e_coco.py',
    'yolof/yolof_r50_c5_8x8_1x_coco.py',
    'yolox/yolox_s_8x8_300e_coco.py',
]
"""mmdet 2.28's configs of further heads and backbones, whose models mmdet 3 has letter by letter."""
RTMDET, QUERIES = (
    'configs/rtmdet/rtmdet_l.py',
    runpy.run_path(str(REPOSITORY / 'tests/families/query/dino_golden.py'))['MODELS'],
)


def model_of(name):
    """Return the model of a config of mmdet 3, as text."""
    if name in RECORDED:
        return pprint.pformat(RECORDED[name]['model'])
    if name in QUERIES:
        return pprint.pformat(QUERIES[name])
    path = str(REPOSITORY / RTMDET) if name == RTMDET else mmdet_config(name)
    return pprint.pformat(Config.fromfile(path).model.to_dict())


@pytest.mark.parametrize('name', in_suite([RTMDET, *QUERIES, *RECORDED, *OF_MMDET_2], RTMDET))
def test_a_config_of_each_kind_of_head_is_translated_in_a_fresh_process(name, tmp_path):
    """In this process other tests have imported what registers a model."""
    source, target = tmp_path / 'config3.py', tmp_path / 'config2.py'
    source.write_text(f'model = {model_of(name)}\n{PIPELINE}')
    words = [sys.executable, '-m', 'mmdeploy_ext', 'convert', 'mmdet3', source, target]
    ran = subprocess.run([*map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert load_config(str(target)).model.type == Config.fromfile(str(source)).model.type
