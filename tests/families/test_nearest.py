"""A detector of no family is refused by its heads, with the family that is nearest and what to do."""

import pytest

from mmdeploy_ext.contract.registry import registration_of
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, find_family
from mmdeploy_ext.families.nearest import part_types

CASES = {
    'detr/detr_r50_8x2_150e_coco.py': ('ConditionalDETR', ['bbox_head', 'bbox_head.transformer'], 'query'),
    'deformable_detr/deformable_detr_r50_16x2_50e_coco.py': ('DABDETR', ['bbox_head'], 'query'),
    'mask2former/mask2former_r50_lsj_8x2_50e_coco.py': ('KMaXDeepLab', ['panoptic_head'], 'query'),
}


@pytest.mark.parametrize(
    ('name', 'detector', 'keys', 'near'), [(name, *rest) for name, rest in CASES.items()]
)
def test_a_detector_of_no_family_hears_what_is_near(name, detector, keys, near):
    cfg = load_config(mmdet_config(name))
    cfg.model.type = detector
    types = part_types(cfg.model)
    with pytest.raises(ConfigError) as refused:
        find_family(cfg)
    said = str(refused.value)
    assert f"model.type='{detector}' with " in said and '\n' not in said and 'None' not in said
    for key in keys:
        assert f'{key}={types[key]!r}' in said
    assert f'nearest is {near}: {registration_of(near).exports}' in said
    assert 'dense' in said.partition('known: ')[2].split(', ')


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
