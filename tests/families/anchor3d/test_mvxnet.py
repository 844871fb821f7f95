"""MVX-Net through its three files equals mmdet3d's own test path; faults in ours are not proven."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_mvxnet
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.anchor3d.mvxnet import graphs
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, FEATURES, sort_voxels
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.runtime.preprocess.points import assigned
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.preparation import PreprocessRule
from proofs import prove
from toy_centerpoint import ENGINE, paths_of
from verdicts import cases_of, matched_of

NAMES = 'voxels', 'backbone', 'head'


def test_three_files_are_proven_on_frames_of_other_cameras_and_sizes():
    detector, folder, *_ = toy_mvxnet.exported()
    verdict = prove(detector, paths_of(folder, NAMES), toy_mvxnet.frames(detector, 2), ENGINE, timed=False)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 60
    tensors = {row.tensor for case in cases_of(verdict) for row in case.tensors}
    assert tensors == {FEATURES, 'bev', 'cls_score_0', 'bbox_pred_0', 'dir_cls_pred_0'}
    spec = read_metadata(paths_of(folder, NAMES)[0]).spec
    assert spec.input_names == ['img', 'lidar2image', 'img_aug_matrix', 'points', 'rows', 'coors']
    assert verdict.untraced == []


# ---- the voxel encoder

SETTINGS = {
    'three layers, distances': {
        'feat_channels=[8, 8], with_distance=False': 'feat_channels=[8, 6, 8], with_distance=True'
    },
    'features below 0': {'activate_out=True': 'activate_out=False'},
    'a layer behind the sum': {
        'mid_channels=8, out_channels=16': 'mid_channels=16, out_channels=16',
        'fuse_out=False': 'fuse_out=True',
    },
    'edges': {'align_corners=False': "align_corners=True, padding_mode='border'"},
    'two levels': {'img_levels=[0, 1, 2, 3, 4]': 'img_levels=[1, 3]'},
    'levels as they are': {'img_levels=[0, 1, 2, 3, 4]': 'img_levels=[1, 3], lateral_conv=False'},
}
IN_SUITE = 'features below 0', 'levels as they are'


@pytest.mark.parametrize('name', in_suite(SETTINGS, *IN_SUITE))
def test_voxels_of_other_settings_equal_mmdet3ds(tmp_path, name):
    toy_mvxnet.register()
    cfg = load_config(toy_mvxnet.write_config(tmp_path, words=SETTINGS[name]))
    family = find_family(cfg)
    torch.manual_seed(0)
    model, rule = family.build(cfg), family.preprocess_rule(cfg)
    for norm in model.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.bias.data.normal_()
    (frame,) = family.data.generated_sweeps(rule, 1)
    frame = dataclasses.replace(frame, points=toy_mvxnet.sweep(3, 500)[:, :4])
    expected = family.reference(model).step(frame).outputs[FEATURES]
    inputs = frame.images, *(frame.calibration[name][0] for name in CAMERA)
    points, rows, coors = assigned(frame.points, rule.voxels)
    tensors = map(torch.from_numpy, (*inputs, points, *sort_voxels(rows, coors)))
    with torch.no_grad():
        features = graphs.VoxelFeatures(model)(*tensors).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())


# ---- bad input

CONFIGS = {
    'another fusion': ({"type='PointFusion'": "type='VoteFusion'"}, "type='VoteFusion'"),
    'points of another width': ({'load_dim=4, use_dim=4': 'load_dim=4, use_dim=3'}, 'in_channels'),
    'pictures that are flipped': ({'flip=False': 'flip=True'}, 'flip=True'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_that_are_not_exported_are_refused_by_their_key(tmp_path, name):
    toy_mvxnet.register()
    words, message = CONFIGS[name]
    cfg = load_config(toy_mvxnet.write_config(tmp_path, words=words))
    family = find_family(cfg)
    assert family.name == 'mvxnet'
    with pytest.raises(ConfigError, match=message):
        family.check(cfg, family.choose(opset=0))


INFO = dict(
    image=dict(image_idx=3, image_path='3.png'),
    point_cloud=dict(velodyne_path='3.bin'),
    calib={name: np.eye(4) for name in ('P2', 'R0_rect', 'Tr_velo_to_cam')},
)


def test_projections_of_infos_of_kitti_are_mmdet3ds(tmp_path):
    (tmp_path / '3.png').touch()
    rng, path = np.random.default_rng(0), tmp_path / 'infos.pkl'
    projection = np.array([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0.003], [0, 0, 0, 1]])
    calibration = dict(P2=projection, R0_rect=rng.normal(size=(4, 4)), Tr_velo_to_cam=rng.normal(size=(4, 4)))
    path.write_bytes(pickle.dumps([INFO | dict(calib=calibration)]))
    (frame,) = read_frames(path, PreprocessRule())
    expected = projection @ calibration['R0_rect'] @ calibration['Tr_velo_to_cam']
    np.testing.assert_allclose(frame.lidar2img[0], expected, rtol=1e-12, atol=1e-9)
    assert frame.name == '3' and frame.pictures == (tmp_path / '3.png',)
