"""A detector of no family is refused by its heads, with the family that is nearest and what to do."""

import pytest

from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, find_family


def test_a_detector_of_no_family_hears_what_is_near():
    cfg = load_config(mmdet_config('mask2former/mask2former_r50_lsj_8x2_50e_coco.py'))
    cfg.model.type = 'OneFormer'
    with pytest.raises(ConfigError, match=r"model\.type='OneFormer' with .*nearest is query: "):
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
