"""The generated nuScenes drive: the devkit's own loader and evaluator take it, and its geometry is true."""

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.cli.synthetic_app import main as synthetic
from mmdeploy_ext.families.synthetic import nuscenes as toy
from mmdeploy_ext.families.synthetic import nuscenes_sensors

FRAMES = 5
SMALL = toy.SetOptions(1, 1, FRAMES, seed=3, image_size=(160, 90), sweeps=1)
TINY = toy.SetOptions(1, 1, 2, seed=3, image_size=(48, 32))
KITTI_BOX = 'location', 'rotation_y', 'dimensions'


def file_hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('toy') / 'toy_nuscenes'
    assert toy.ensure_toy_nuscenes(folder, SMALL, jobs=1, quiet=True)
    return folder


@pytest.fixture(scope='module')
def nusc(root):
    from nuscenes.nuscenes import NuScenes

    return NuScenes('v1.0-trainval', str(root), verbose=False)


def key_frames(nusc, channel):
    """Yield (record, boxes in the sensor's frame) of the key frames of a channel."""
    for sample in nusc.sample:
        record = nusc.get('sample_data', sample['data'][channel])
        yield record, nusc.get_sample_data(record['token'])[1]


def test_the_devkit_loads_all_tables_and_every_link_leads_somewhere(nusc, root):
    from nuscenes.utils import splits

    assert [scene['name'] for scene in nusc.scene] == splits.train[:1] + splits.val[:1]
    assert len(nusc.sample) == 2 * FRAMES
    for record in nusc.sample_data:
        assert (root / record['filename']).is_file()
        assert nusc.get('ego_pose', record['ego_pose_token'])['timestamp'] == record['timestamp']
    for table in ('sample', 'sample_data', 'sample_annotation'):
        for record in getattr(nusc, table):
            assert record['next'] == '' or nusc.get(table, record['next'])['prev'] == record['token']
    for instance in nusc.instance:
        first = nusc.get('sample_annotation', instance['first_annotation_token'])
        count = 1
        while first['next']:
            first, count = nusc.get('sample_annotation', first['next']), count + 1
        assert (first['token'], count) == (instance['last_annotation_token'], instance['nbr_annotations'])
    assert all(set(sample['data']) == {*nuscenes_sensors.CAMERAS, 'LIDAR_TOP'} for sample in nusc.sample)


def test_lidar_points_lie_on_the_boxes_they_are_counted_for_and_on_the_ground(nusc, root):
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counted = annotated = 0
    for record, boxes in key_frames(nusc, 'LIDAR_TOP'):
        raw = np.fromfile(root / record['filename'], np.float32).reshape(-1, 5)
        assert raw[:, 3].min() >= 0 and raw[:, 3].max() <= 255 and set(raw[:, 4]) <= set(range(32))
        points = LidarPointCloud.from_file(str(root / record['filename'])).points[:3]
        inside = np.zeros(points.shape[1], bool)
        for box in boxes:
            mine = points_in_box(box, points, wlh_factor=1.02) & ~inside
            inside |= mine
            counted += mine.sum()
            annotated += nusc.get('sample_annotation', box.token)['num_lidar_pts']
        calibration = nusc.get('calibrated_sensor', record['calibrated_sensor_token'])
        height = calibration['translation'][2]
        level = (Quaternion(calibration['rotation']).rotation_matrix @ points)[2] + height
        assert (np.abs(level[~inside & (raw[:, 3] < 18)]) < 0.05).mean() > 0.99
    assert counted == pytest.approx(annotated, rel=0.1) and annotated > 2000


def _truth_as_predictions(nusc) -> dict:
    from nuscenes.eval.common.loaders import load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox

    results = {}
    truth = load_gt(nusc, 'val', DetectionBox)
    for token in truth.sample_tokens:
        results[token] = [
            {**box.serialize(), 'detection_score': 0.9, 'velocity': np.nan_to_num(box.velocity).tolist()}
            for box in truth[token]
        ]
    flags = dict.fromkeys(('use_camera', 'use_lidar', 'use_radar', 'use_map', 'use_external'), False)
    return {'meta': flags, 'results': results}


def test_the_devkit_gives_the_ground_truth_itself_map_and_nds_1(nusc, tmp_path):
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    (tmp_path / 'results.json').write_text(json.dumps(_truth_as_predictions(nusc)))
    evaluation = DetectionEval(
        nusc,
        config_factory('detection_cvpr_2019'),
        str(tmp_path / 'results.json'),
        'val',
        str(tmp_path / 'out'),
        verbose=False,
    )
    metrics = evaluation.evaluate()[0].serialize()
    assert metrics['mean_ap'] > 0.99 and metrics['nd_score'] > 0.99
    shifted = {key: value for key, value in metrics['mean_dist_aps'].items() if value < 0.99}
    assert not shifted


def test_equal_options_give_equal_bytes_and_other_options_are_refused(tmp_path):
    numbers = {'--train-scenes': 1, '--val-scenes': 1, '--frames': 2, '--seed': 3, '--jobs': 1}
    options = [str(word) for pair in numbers.items() for word in pair] + ['--image-size', '48', '32']
    assert synthetic(['nuscenes', '--root', str(tmp_path / 'one'), *options]) == 0
    assert toy.ensure_toy_nuscenes(tmp_path / 'again', TINY, jobs=1, quiet=True)
    assert not toy.ensure_toy_nuscenes(tmp_path / 'again', TINY, quiet=True)
    assert file_hashes(tmp_path / 'one') == file_hashes(tmp_path / 'again')
    with pytest.raises(DataError, match='--force'):
        toy.ensure_toy_nuscenes(tmp_path / 'one', dataclasses.replace(TINY, frames=3), quiet=True)


def test_pictures_have_annotations_of_nuscenes_and_kitti_and_the_sweep_of_their_moment(root):
    assert synthetic(['monocular', '--root', str(root)]) == 0
    content = json.loads((root / 'nuscenes_infos_val_mono3d.coco.json').read_text())
    assert len(content['images']) == 6 * FRAMES
    for entry in content['annotations']:
        x, y, depth = entry['center2d']
        left, top, width, height = entry['bbox']
        assert depth == entry['bbox_cam3d'][2] > 0.5 and min(width, height) >= 2
        if 0 < x < 160 and 0 < y < 90:
            assert left <= x <= left + width and top <= y <= top + height
    infos = pickle.loads((root / 'kitti_infos_val.pkl').read_bytes())
    on_boxes = 0
    for info in infos:
        points = np.fromfile(root / info['point_cloud']['velodyne_path'], np.float32).reshape(-1, 4)
        in_camera = points[:, :3] @ info['calib']['Tr_velo_to_cam'][:3, :3].T
        in_camera = in_camera + info['calib']['Tr_velo_to_cam'][:3, 3]
        for bottom, yaw, size in zip(*(info['annos'][key] for key in KITTI_BOX), strict=True):
            cos, sin = np.cos(yaw), np.sin(yaw)
            local = (in_camera - bottom) @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
            length, height, width = size * 1.05
            inside = (np.abs(local[:, 0]) < length / 2) & (np.abs(local[:, 2]) < width / 2)
            on_boxes += (inside & (local[:, 1] < 0) & (local[:, 1] > -height)).any()
    assert on_boxes > sum(len(info['annos']['name']) for info in infos) / 2
