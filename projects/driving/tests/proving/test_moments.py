"""What the runtimes make of infos is what the config's own test pipeline makes of them; faults are named."""

import copy
import dataclasses
import functools
import types

import numpy as np
import pytest
from mmdet.datasets import DATASETS
from mmdet3d.datasets.builder import DATASETS as DATASETS_3D

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from marking import in_suite
from mm2onnx_driving.common import camera
from mm2onnx_driving.layers.datasets import BevNuScenesDataset
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.proving.preprocessing import compare_prepared
from mmdeploy_ext.runtime import infos, sweeps
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.runtime.preprocess import cameras, fusion
from planting import altered, arguments, replaced, result
from projects.configs import nuscenes_fusion
from toy_atss import REPO

CONFIGS = dict(
    streampetr='StreamPETR/stream_petr_toy',
    bevfusion='BEVFusion/bevfusion_toy',
    centerpoint='BEVFusion/centerpoint_toy',
    anchor3d='PointPillars/pointpillars_toy',
    past_sweeps='Autoware/centerpoint_pillar_toy',
)
USERS = dict(bevformer='BEVFormer/bevformer_toy', mvxnet='MVXNet/mvxnet_toy')
IMAGE = dict(final_dim=[96, 256], resize_lim=[256 / 352, 256 / 352], source=[198, 352])


@functools.cache
def detector(name):
    """Return a config without a model: the comparison needs none."""
    path = (CONFIGS | USERS).get(name, CONFIGS['bevfusion'])
    cfg = load_config(f'{REPO}/projects/configs/{path}.py')
    if name == 'fusion_past_sweeps':
        cfg.data.test.pipeline = nuscenes_fusion.test_pipeline(IMAGE, 3)
    family = find_family(cfg)
    return types.SimpleNamespace(cfg=cfg, family=family, rule=family.preprocess_rule(cfg), classes=('car',))


def compare(name):
    one = detector(name)
    rule = type(one.rule).from_json(one.rule.to_json())
    return compare_prepared(one, rule, (), 'frame')


@pytest.mark.parametrize(
    'name',
    in_suite([*CONFIGS, 'fusion_past_sweeps'], 'streampetr', 'centerpoint', 'anchor3d', 'fusion_past_sweeps'),
)
def test_moments_are_those_of_the_test_pipeline(name):
    found = compare(name)
    assert found.passed and found.text == "equal to the config's test pipeline (2 frames)"


def rotated(order):
    return lambda original: lambda *args: [original(*args)[index] for index in order]


INVERTED = result(lambda one, *_: dataclasses.replace(one, ego_pose=invert_pose(one.ego_pose)))
OLDER = result(lambda points, *_: points * np.float32([1, 1, 1, 1, -1]))
SWEEP_LESS = arguments(lambda self, one, all_, *others: (self, one, all_[1:], *others))
FAULTS = {
    'bgr': ('streampetr', 'images', altered(cameras, 'normalise', arguments(lambda *a: (*a[:3], not a[3])))),
    'cameras': ('streampetr', 'images', altered(infos, 'camera_names', rotated([0, 2, 1, 3, 4, 5]))),
    'pose': ('streampetr', 'ego_pose', altered(camera, 'frame_of_rig', INVERTED)),
    'milliseconds': ('streampetr', 'timestamp_s', altered(infos, 'MICROSECONDS', lambda value: value / 1e3)),
    'camera2lidar': ('bevfusion', 'camera2lidar', altered(infos, 'invert_pose', lambda _: lambda pose: pose)),
    'sign of an age': ('past_sweeps', 'points', altered(fusion.PastSweeps, 'merge', OLDER)),
    'a sweep less': ('fusion_past_sweeps', 'points', altered(fusion.PastSweeps, 'merge', SWEEP_LESS)),
}


@pytest.mark.parametrize(
    'fault', in_suite(FAULTS, 'pose', 'milliseconds', 'bgr', 'a sweep less', 'sign of an age')
)
def test_a_fault_of_the_runtimes_reading_is_named(fault, monkeypatch):
    config, value, plant = FAULTS[fault]
    detector(config)
    plant(monkeypatch)
    found = compare(config)
    assert not found.passed and value in {one.name for one in found.differences}, found.text


@pytest.mark.parametrize('step', ['PointsRangeFilter', 'LoadPointsFromFile'])
def test_the_step_that_changes_the_points_is_named(step, monkeypatch):
    one = detector('anchor3d')
    cfg = copy.deepcopy(one.cfg)
    rule = type(one.rule).from_json(one.rule.to_json())
    if step == 'LoadPointsFromFile':
        altered(sweeps, 'read_points', result(lambda points, *_: points[1:]))(monkeypatch)
    else:  # smaller than the voxels' range: forgotten at a change of both
        points_filter = dict(type=step, point_cloud_range=[0, -10, -3, 20, 10, 1])
        cfg.data.test.pipeline[1]['transforms'].insert(0, points_filter)
    changed = types.SimpleNamespace(cfg=cfg, family=one.family, rule=one.rule, classes=('car',))
    found = compare_prepared(changed, rule, (), 'frame')
    assert {difference.name for difference in found.differences} == {'points'} and step in found.text


RECORD = 'mmdeploy_ext.runtime.bev_motion:can_bus_record'
CAMERA = 'mmdeploy_ext.families.anchor3d.mvxnet.runtime:camera_matrices'
VELOCITY_FIRST = [*range(7), 13, 14, 15, 10, 11, 12, 7, 8, 9, 16, 17]
WRONG_BY_ITSELF = {
    'nothing measured': (
        'bevformer', 'can_bus', RECORD, result(lambda record, *_: record * ~np.isin(range(18), range(7, 16)))
    ),
    'velocity first': ('bevformer', 'can_bus', RECORD, result(lambda record, *_: record[VELOCITY_FIRST])),
    'a heading below 0': (
        'bevformer',
        'can_bus',
        RECORD,
        result(lambda record, *_: record - (record[17] > 180) * np.r_[np.zeros(16), 2 * np.pi, 360]),
    ),
    'rows for columns': (
        'mvxnet', 'lidar2image', CAMERA, arguments(lambda camera, to_input: (camera.T, to_input))
    ),
    'no scale': (
        'mvxnet', 'img_aug_matrix', CAMERA, arguments(lambda camera, to_input: (camera, np.eye(3)))
    ),
}  # fmt: skip
"""What is wrong -> config, value, and a function of the runtime that is wrong wherever it is called."""


@pytest.mark.parametrize(
    'fault', in_suite(WRONG_BY_ITSELF, 'a heading below 0', 'rows for columns', 'no scale')
)
def test_a_data_set_of_ours_has_no_fault_of_the_runtime(fault):
    config, value, place, make = WRONG_BY_ITSELF[fault]
    detector(config)
    with replaced(place, make):
        found = compare(config)
    assert {one.name for one in found.differences} == {value}, found.text


class UsersDataset(BevNuScenesDataset):
    """A data set of a repository: it reads what infos of BEVFormer alone have, and entries of its own."""

    def __init__(self, factor=1.0, entries=(), **kwargs):
        super().__init__(**kwargs)
        self.factor, self.entries = factor, entries

    def get_data_info(self, index):
        info = self.data_infos[index]
        info['can_bus'][:3] = info['ego2global_translation']  # in place, as upstream does it
        read = [info[name] for name in ('prev', 'next', 'frame_idx', 'scene_token', *self.entries)]
        assert len(read) == 4 + len(self.entries) and info['can_bus'].shape == (18,)
        result = super().get_data_info(index)
        return dict(result, lidar2img=[self.factor * matrix for matrix in result['lidar2img']])


def users_detector(monkeypatch, registry, config='bevformer', kind=UsersDataset, **settings):
    """Return a config whose test set is of a class that a plugin registered."""
    monkeypatch.setitem(registry.module_dict, kind.__name__, kind)
    one = detector(config)
    cfg = copy.deepcopy(one.cfg)
    cfg.data.test = dict(cfg.data.test, type=kind.__name__, **settings)
    return types.SimpleNamespace(**dict(vars(one), cfg=cfg))


class SmallCameras(BevNuScenesDataset):
    """A data set whose cameras belong to smaller pictures than those of the config."""

    def load_annotations(self, ann_file):
        infos = super().load_annotations(ann_file)
        for info in infos:
            for view in info['cams'].values():
                view['cam_intrinsic'][:2] /= 20
        return infos


def test_a_refused_camera_is_named_by_the_users_file(monkeypatch):
    one = users_detector(monkeypatch, DATASETS, kind=SmallCameras)
    found = compare_prepared(one, one.rule, (), 'frame')
    assert 'infos.pkl: info 0: CAM' in found.error and 'cam_intrinsic' in found.error


@pytest.mark.parametrize('registry', [DATASETS, DATASETS_3D], ids=['mmdet', 'mmdet3d'])
def test_a_users_data_set_is_compared_whichever_registry_has_it(registry, monkeypatch):
    one = users_detector(monkeypatch, registry)
    assert compare_prepared(one, one.rule, (), 'frame').passed
    one.cfg.data.test['factor'] = 2.0
    found = compare_prepared(one, one.rule, (), 'frame')
    assert not found.passed and {entry.name for entry in found.differences} == {'lidar2img'}
