"""BEVFusion on a data set: matrices that fit pictures and points, boxes in mmdet3d's columns."""

import dataclasses
import pickle
import types

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_nuscenes
from mm2onnx_driving.bevfusion.center_head import TransFusionBBoxCoder
from mm2onnx_driving.bevfusion.family import frame, fusion_rule
from mm2onnx_driving.bevfusion.runtime import FusionRuntime, frame_of_rig
from mm2onnx_driving.layers.pipelines import ImageAug3D
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.evaluate.evaluation import build_loader
from mmdeploy_ext.families.synthetic.nuscenes_infos import create_infos
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from projects.configs.nuscenes_fusion import loading
from toy_atss import REPO

CONFIGS = REPO / 'projects/configs/BEVFusion'


def read_config(name, root):
    paths = {'data.test.ann_file': f'{root}/toy_nuscenes_infos_val.pkl', 'data.test.data_root': f'{root}/'}
    return load_config(str(CONFIGS / f'{name}.py'), paths)


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    root = toy_nuscenes.write(tmp_path_factory.mktemp('data'), val_scenes=1, frames=2)
    return read_config('bevfusion_toy', root)


def loaded(test, index=0):
    """Return a moment of a data set as the test loop has it."""
    dataset = build_dataset(dict(test, test_mode=True))
    return frame(next(iter(build_loader(dataset, [index], workers_per_gpu=0))))


def test_a_point_of_a_picture_is_where_its_matrix_says():
    """A picture whose values are its columns (or rows), so that a value says where it came from."""
    rows, columns = np.mgrid[:198, :250].astype(np.float32)
    image = np.stack([rows, columns, 0 * rows], -1)
    settings = dict(final_dim=[96, 128], resize_lim=[0.7, 0.8], bot_pct_lim=(0.0, 0.1), source=[198, 250])
    found = ImageAug3D(**settings)(dict(img=[image] * 2))
    steps = [
        dict(settings, type='ImageAug3D'),
        dict(type='ImageNormalize', mean=[0.1, 0.2, 0.3], std=[1, 2, 3]),
    ]
    model = dict(encoders=dict(camera=dict(vtransform=dict(image_size=[96, 128]))))
    rule = fusion_rule(Config(dict(model=model, data=dict(test=dict(pipeline=steps)))))
    np.testing.assert_allclose(rule.img_aug_matrix()[0, :2], found['img_aug_matrix'][0][:2])
    assert rule.views.source == (198, 250) and rule.views.std == (255.0, 510.0, 765.0)
    y, x = 40, 50
    for changed, matrix in zip(found['img'], found['img_aug_matrix'], strict=True):
        was = np.linalg.inv(matrix[:2, :2]) @ (np.array([x + 0.5, y + 0.5]) - matrix[:2, 3])
        assert np.abs(changed[y, x, [1, 0]] + 0.5 - was).max() < 1.5
    assert found['img_aug_matrix'][0, :2, 3].tolist() == [-29, -44]  # (187 - 128) / 2, 140 - 96


def test_a_moment_of_the_data_set_has_pictures_points_and_matrices_that_agree(cfg):
    found = loaded(cfg.data.test)
    assert found.images.shape == (6, 3, 96, 256) and found.points.shape[1] == 5
    assert len(found.image_files) == 6 and set(found.calibration) == set(MATRICES)
    rig = {name: matrix.astype(np.float64) for name, matrix in found.calibration.items()}
    seen = rig['camera_intrinsics'] @ np.linalg.inv(rig['camera2lidar'])
    assert np.abs(seen - rig['lidar2image']).max() < 1e-2
    assert np.allclose(rig['img_aug_matrix'][0, :2, 3], [0, -48])


def test_sweeps_of_the_past_come_after_the_key_frame_with_their_age(tmp_path):
    """The published configs' own steps, on a set that has sweeps between its key frames."""
    root = toy_nuscenes.write(tmp_path, val_scenes=1, frames=2, image_size=(32, 32), sweeps=3)
    create_infos(str(root), str(root), 'toy_nuscenes', 'v1.0-trainval', 10)
    found = loaded(read_config('bevfusion_lidar_transfusion_nus', root).data.test, 1)
    ages = np.unique(found.points[:, 4])
    assert ages.tolist() == [0, 0.125, 0.25, 0.375, 0.5] and found.points[0, 4] == 0
    assert found.images is None and not found.calibration


def test_boxes_of_the_head_are_those_of_the_annotations(cfg):
    """Encoded as in training and decoded as at test time; columns and heading of mmdet3d."""
    boxes = build_dataset(cfg.data.test).get_ann_info(0)['gt_bboxes_3d'].tensor
    coder = TransFusionBBoxCoder([-22.4, -22.4], 4, [0.2, 0.2], None, 0.0, 10)
    code = coder.encode(in_lidar_columns(boxes)).T[None]
    split = [code[:, :2], code[:, 2:3], code[:, 3:6], code[:, 6:8], code[:, 8:10]]
    found = in_lidar_columns(coder.boxes(*split)[0])
    turns = torch.round((found[:, 6] - boxes[:, 6]) / (2 * np.pi))
    found[:, 6] -= 2 * np.pi * turns
    assert len(boxes) > 5 and torch.allclose(found, boxes, atol=1e-4)


def test_a_moment_of_the_runtime_is_that_of_the_loader(cfg, tmp_path):
    """Pictures, points and matrices of an info file, by numpy alone and by the data set's pipeline."""
    path = tmp_path / 'infos.pkl'
    with open(cfg.data.test.ann_file, 'rb') as stream:
        content = pickle.load(stream)
    first, second = content['infos']
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    before = dict(
        data_path=first['lidar_path'], timestamp=second['timestamp'] - 250_000,
        sensor2lidar_rotation=turn, sensor2lidar_translation=np.array([1.0, 2.0, 3.0]),
    )  # fmt: skip
    content['infos'] = [dict(second, sweeps=[before])]
    path.write_bytes(pickle.dumps(content))
    pipeline = [*loading(2, True), *cfg.data.test.pipeline[2:]]
    wanted = loaded(dict(cfg.data.test, ann_file=str(path), pipeline=pipeline))
    rule = find_family(cfg).preprocess_rule(cfg)
    (rig,) = read_frames(path, rule.views)
    rule = dataclasses.replace(rule, sweeps=2, pad_empty_sweeps=True, remove_close=True)
    found = frame_of_rig([read_image(file) for file in rig.pictures], rig, rule)
    np.testing.assert_array_equal(found.points, wanted.points)
    np.testing.assert_array_equal(found.images, wanted.images)
    for name in MATRICES:
        gap = np.abs(found.calibration[name] - wanted.calibration[name]).max()
        assert gap < 1e-6 * np.abs(wanted.calibration[name]).max() + 1e-6, name


def test_what_depends_on_the_rig_is_made_again_when_a_matrix_changes():
    runtime, rigs = (
        types.SimpleNamespace(_rig=(b'', None)),
        [dict(a=np.eye(4) * size) for size in (1, 1, 2, 1)],
    )
    found = [FusionRuntime.of_rig(runtime, rig, ['a'], lambda rig: rig['a'][0, 0]) for rig in rigs]
    assert found == [1, 1, 2, 1]
