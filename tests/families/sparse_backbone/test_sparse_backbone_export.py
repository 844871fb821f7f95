"""The sparse families: which config is whose, and grids that disagree, by the names of their keys."""

import pytest
import torch

pytest.importorskip('spconv')

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_seeded as seeded
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import CheckpointError, ConfigError
from mmdeploy_ext.exporting.int8 import Calibration
from mmdeploy_ext.families.base import BACKBONE, find_family
from mmdeploy_ext.families.sparse_backbone.family import BEVFUSION as BEVFUSION_ENCODER
from mmdeploy_ext.families.sparse_backbone.family import CENTERPOINT as CENTERPOINT_ENCODER
from mmdeploy_ext.families.sparse_backbone.family import SPARSE_ENCODER

CONFIGS = 'projects/configs/BEVFusion'
NAMES = {
    'bevfusion_lidar_0075voxel_nus': (BEVFUSION_ENCODER, (1, 256, 180, 180), 'hard', 160000),
    'centerpoint_lidar_0075voxel_nus': (CENTERPOINT_ENCODER, (1, 256, 180, 180), 'hard', 160000),
    'centerpoint_01voxel_second_secfpn_nus': (SPARSE_ENCODER, (1, 256, 128, 128), 'hard', 120000),
    'second_dynamic_secfpn_kitti': (SPARSE_ENCODER, (1, 256, 200, 176), 'dynamic', -1),
}
"""Config -> its family, the shape of its output, and how it makes voxels."""


def load(name, **overrides):
    dotted = {key.replace('__', '.'): value for key, value in overrides.items()}
    return load_config(f'{CONFIGS}/{name}.py', dotted)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_has_one_family_and_its_output_and_voxels_are_as_published(name):
    encoder_family, output, mode, max_voxels = NAMES[name]
    cfg = load(name)
    family = find_family(cfg, BACKBONE)
    assert family is encoder_family
    model = family.build(cfg)
    settings = family.settings(cfg, model)
    assert settings.output_shape == output and settings.order == family.orders[0] and not model.training
    paths = dict(family.encoder(model).named_modules())
    assert set(family.int8.precisions) <= set(paths) and family.int8.precisions
    rule = family.preprocess_rule(cfg)
    assert (rule.mode, rule.max_voxels, rule.in_channels) == (mode, max_voxels, 4 if 'kitti' in name else 5)
    assert rule.order == ('xyz' if name.startswith('bevfusion') else 'zyx')
    assert type(rule).from_json(rule.to_json()) == rule


BEVFUSION, CENTERPOINT = 'bevfusion_lidar_0075voxel_nus', 'centerpoint_0075voxel_second_secfpn_nus'


@pytest.mark.parametrize(
    ('name', 'overrides', 'message'),
    [
        (BEVFUSION, {'model.encoder.sparse_shape': [41, 1440, 1440]}, r'sparse_shape=\[41, 1440, 1440\]'),
        (BEVFUSION, {'model.encoder.sparse_shape': [1440, 1440, 45]}, '45 cells along z, .* gives 40'),
        (BEVFUSION, {'model.voxel_layer.voxel_size': [0.07, 0.075, 0.2]}, r'1542.857'),
        (CENTERPOINT, {'model.pts_middle_encoder.output_channels': 64}, 'model.pts_backbone.in_channels'),
    ],
)
def test_grids_that_disagree_are_refused_with_their_keys(name, overrides, message):
    cfg = load_config(f'{CONFIGS}/{name}.py', overrides)
    family = find_family(cfg, BACKBONE)
    with pytest.raises(ConfigError, match=message):
        family.settings(cfg, family.build(cfg))


def test_features_that_are_no_means_and_a_layer_without_a_range_are_refused():
    cfg = load(CENTERPOINT, model__pts_voxel_encoder=dict(type='HardVFE', _delete_=True))
    with pytest.raises(ConfigError, match=r'pts_voxel_encoder.type.*HardVFE.*HardSimpleVFE'):
        find_family(cfg, BACKBONE).preprocess_rule(cfg)
    cfg = load(BEVFUSION, model__voxel_layer__point_cloud_range=None)
    with pytest.raises(ConfigError, match=r'model.voxel_layer.*point_cloud_range'):
        find_family(cfg, BACKBONE).preprocess_rule(cfg)


def test_other_models_are_nobodys():
    cfg = load(BEVFUSION, model__encoder__type='PointPillarsScatter')
    with pytest.raises(ConfigError, match='has no sparse-convolution backbone'):
        find_family(cfg, BACKBONE)


def test_a_detectors_whole_checkpoint_is_loaded_with_its_rest(tmp_path):
    cfg = load('second_secfpn_kitti')
    family = find_family(cfg, BACKBONE)
    source, target = family.build(cfg), family.build(cfg)
    seeded.fill_sparse_module(source)
    torch.save(dict(state_dict=source.state_dict(), meta={}), tmp_path / 'whole.pth')
    report = family.load(target, str(tmp_path / 'whole.pth'))
    assert report.rest == 'loaded' and report.prefix == 'middle_encoder.' and not report.unused
    assert all(torch.equal(*pair) for pair in zip(source.parameters(), target.parameters(), strict=True))
    state = {key: value for key, value in source.state_dict().items() if key != 'bbox_head.conv_cls.bias'}
    torch.save(state, tmp_path / 'torn.pth')
    with pytest.raises(CheckpointError, match=r'1 \(bbox_head.conv_cls.bias\)'):
        family.load(target, str(tmp_path / 'torn.pth'))


def test_calibration_is_the_references_unless_options_say_otherwise():
    bevfusion, centerpoint = BEVFUSION_ENCODER, CENTERPOINT_ENCODER
    assert Calibration().resolved(bevfusion.int8) == Calibration(add_method='', unfolded=(), half=True)
    assert Calibration().resolved(centerpoint.int8) == Calibration(add_method='max', unfolded=(), half=False)
    assert Calibration(int8_fp16_io=True).resolved(centerpoint.int8).unfolded == ('conv_input.0',)
    mine = Calibration(add_method='mse', unfolded=(), half=False, int8_fp16_io=True)
    assert mine.resolved(bevfusion.int8) == mine.resolved(centerpoint.int8) == mine
