"""BEVFusion at full size on a real key frame of nuScenes: two contracts are proven."""

import pickle

import numpy as np
import pytest
import torch

import bevfusion_golden
import toy_bevfusion
from mm2onnx_driving.bevfusion.runtime import frame_of_rig
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.runtime.infos import RigFrame
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from proofs import prove
from real_nuscenes import NUSCENES
from verdicts import cases_of, graphs_of

SCENE = NUSCENES / 'scene-0061'


def real(rule):
    """Return the frame; its info file is of mmdet3d 1.1's kind."""
    if not SCENE.is_dir():
        pytest.skip('skipped: ../shared/data/nuscenes/scene-0061 not found')
    (path,) = SCENE.glob('*.pkl')
    with open(path, 'rb') as stream:
        (info,) = pickle.load(stream)['data_list']
    cameras = [info['images'][name] for name in rule.views.cameras]
    names = zip(rule.views.cameras, cameras, strict=True)
    files = tuple(SCENE / 'samples' / name / camera['img_path'].split('/')[-1] for name, camera in names)
    lidar = SCENE / 'samples/LIDAR_TOP' / info['lidar_points']['lidar_path'].split('/')[-1]
    to_camera = np.array([camera['lidar2cam'] for camera in cameras], np.float64)
    rig = RigFrame(
        'scene-0061', files, np.array([camera['cam2img'] for camera in cameras], np.float64),
        invert_pose(invert_pose(to_camera)), np.eye(4), 0.0, None, dict(lidar_path=str(lidar)), path,
    )  # fmt: skip
    return frame_of_rig([read_image(file) for file in files], rig, rule)


@pytest.mark.matrix
@pytest.mark.parametrize('contract', ['portable', 'cuda-bevfusion'])
def test_a_real_key_frame_is_proven_with_seeded_weights(tmp_path, contract):
    model, _ = bevfusion_golden.model()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'seeded.pth')
    detector = detectors.load(str(bevfusion_golden.CONFIG), str(tmp_path / 'seeded.pth'))
    frame = real(detector.rule)
    paths = toy_bevfusion.export(detector, tmp_path / 'files', contract=contract)
    verdict = prove(detector, paths, [frame])
    assert all(graph.passed for graph in graphs_of(verdict))
    assert all(case.passed for case in cases_of(verdict)) and verdict.summary()['matched'] >= 10
