"""A detector of no family is refused by its heads, with the family that is nearest and what to do."""

import pytest

from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, find_family


def test_a_detector_of_no_family_hears_what_is_near():
    cfg = load_config(mmdet_config('detr/detr_r50_8x2_150e_coco.py'))
    cfg.model.type = 'ConditionalDETR'
    with pytest.raises(ConfigError, match=r"model\.type='ConditionalDETR' with .*nearest is query: "):
        find_family(cfg)


def test_the_closest_claim_gets_the_config_and_a_part_is_had_by_asking_for_it():
    cfg = load_config('projects/configs/BEVFusion/centerpoint_toy.py')
    assert find_family(cfg).name == find_family(cfg, DETECTOR).name == 'centerpoint'
    assert find_family(cfg, BACKBONE).name == 'sparse_backbone'


def test_a_backbone_alone_is_no_detector_and_the_message_says_what_exports_it():
    cfg = load_config('projects/configs/BEVFusion/bevfusion_lidar_0075voxel_nus.py')
    assert find_family(cfg).product == BACKBONE
    with pytest.raises(ConfigError, match='--backbone'):
        find_family(cfg, DETECTOR)


def test_a_copy_of_a_head_under_another_base_hears_how_to_try_the_original():
    from mmcv.runner import BaseModule
    from mmdet.models.builder import HEADS

    original = HEADS.get('SOLOHead')
    methods = {name: value for name, value in vars(original).items() if not name.startswith('__')}
    copy = type('HybridHead', (BaseModule,), methods)
    HEADS.register_module(module=copy, force=True)
    cfg = load_config(mmdet_config('solo/solo_r50_fpn_1x_coco.py'))
    cfg.model.mask_head.type = 'HybridHead'
    with pytest.raises(ConfigError, match=r'--cfg-options model\.mask_head\.type=SOLOHead'):
        find_family(cfg)
