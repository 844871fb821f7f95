"""LiDAR configs of mmdet3d 1.4 as configs of mmdet3d 1.0.0rc6: equal to its own, or refused by key."""

import copy

import pytest
from mmcv import Config

from mmdeploy_ext.base.config import mmdet3d_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.weights.convert.mmdet3_config import to_mmdet2_config

pytest.importorskip('mmdet3d')
NAMES = dict(
    pointpillars='pointpillars/hv_pointpillars_secfpn_6x8_160e_kitti-3d-car.py',
    second='second/hv_second_secfpn_6x8_80e_kitti-3d-car.py',
    centerpoint='centerpoint/centerpoint_02pillar_second_secfpn_4x8_cyclic_20e_nus.py',
)


def as_mmdet3d_1_4(name, **preprocessor):
    """Return a config of mmdet3d 1.0 in the words of 1.4."""
    own = Config.fromfile(mmdet3d_config(NAMES[name]))
    model, (*loads, flips) = copy.deepcopy(own.model.to_dict()), copy.deepcopy(own.data.test.pipeline)
    key = 'voxel_layer' if 'voxel_layer' in model else 'pts_voxel_layer'
    layer = model.pop(key)
    model['data_preprocessor'] = dict(
        type='Det3DDataPreprocessor', voxel=True, voxel_layer=layer, **preprocessor
    )
    model['type'] = f'mmdet3d.{model["type"]}'
    for load in loads:
        load.pop('file_client_args', None)
        load['backend_args'] = None
    flips['transforms'] = flips['transforms'][:-2]
    steps = [*loads, flips, dict(type='Pack3DDetInputs', keys=['points'])]
    dataset = dict(type=own.data.test.type, metainfo=dict(classes=own.class_names), pipeline=steps)
    content = dict(model=model, test_dataloader=dict(dataset=dataset))
    return own, Config(content, cfg_text='model', filename='lidar.py')


@pytest.mark.parametrize('name', NAMES)
def test_model_and_pipeline_are_those_of_mmdet3d_1_0(name):
    own, cfg = as_mmdet3d_1_4(name)
    made = to_mmdet2_config(cfg)
    own.model.pop('train_cfg')
    assert made.model.to_dict() == own.model.to_dict()
    expected = copy.deepcopy(own.data.test.pipeline)
    for step in expected:
        step.pop('file_client_args', None)
    assert made.data.test.pipeline == expected
    assert (made.data.test.type, made.class_names) == (own.data.test.type, own.class_names)


def test_what_is_not_known_is_refused_by_its_key():
    for preprocessor, key in ((dict(voxel_type='cylindrical'), 'voxel_type'), (dict(mean=[0]), 'mean')):
        with pytest.raises(ConfigError, match=rf'lidar\.py: model\.data_preprocessor\.{key}='):
            to_mmdet2_config(as_mmdet3d_1_4('second', **preprocessor)[1])
    cfg = as_mmdet3d_1_4('second')[1]
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='PolarMix'))
    with pytest.raises(ConfigError, match=r"lidar\.py: test_pipeline\.1\.type='PolarMix'"):
        to_mmdet2_config(cfg)
    cfg = as_mmdet3d_1_4('second')[1]
    cfg.model.type = 'mmdet3d.PointRCNN'
    with pytest.raises(ConfigError, match=r"lidar\.py: model\.type='PointRCNN'"):
        to_mmdet2_config(cfg)
