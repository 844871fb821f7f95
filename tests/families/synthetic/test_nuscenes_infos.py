"""Info files: equal to the devkit's boxes, to mmdet3d's own converter, and to real nuScenes' calibration."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.families.synthetic import nuscenes as toy
from mmdeploy_ext.families.synthetic import nuscenes_infos

SIZE = (160, 90)


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('infos') / 'toy_nuscenes'
    toy.ensure_toy_nuscenes(folder, toy.SetOptions(1, 1, 4, 5, SIZE, sweeps=2), jobs=1, quiet=True)
    return folder


@pytest.fixture(scope='module')
def nusc(root):
    return nuscenes_infos.load_tables(root, 'v1.0-trainval')


@pytest.fixture(scope='module')
def written(root, tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp('out')
    counts = nuscenes_infos.create_infos(root, out, 'toy', max_sweeps=3, quiet=True)
    assert set(counts.values()) == {4}
    return {path.name: pickle.loads(path.read_bytes()) for path in counts}


@pytest.fixture(scope='module')
def infos(written) -> list[dict]:
    return [
        info for split in ('train', 'val') for info in written[f'toy2d_temporal_infos_{split}.pkl']['infos']
    ]


def test_frames_of_a_scene_are_chained_and_numbered(written):
    infos = written['toy2d_temporal_infos_val.pkl']['infos']
    assert [info['frame_idx'] for info in infos] == [0, 1, 2, 3]
    assert [info['prev'] for info in infos] == ['', *(info['token'] for info in infos[:-1])]
    assert [info['next'] for info in infos] == [*(info['token'] for info in infos[1:]), '']
    assert len({info['scene_token'] for info in infos}) == 1
    assert [len(info['sweeps']) for info in infos] == [0, 3, 3, 3]
    assert infos[3]['sweeps'][0]['timestamp'] > infos[3]['sweeps'][1]['timestamp']


def test_boxes_and_velocities_are_the_devkits_in_the_lidar_frame(nusc, infos):
    for info in infos:
        sample = nusc.get('sample', info['token'])
        _, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
        assert len(boxes) == len(info['gt_boxes']) > 0
        rotation = (Quaternion(info['ego2global_rotation']) * Quaternion(info['lidar2ego_rotation'])).inverse
        for box, row, velocity in zip(boxes, info['gt_boxes'], info['gt_velocity'], strict=True):
            np.testing.assert_allclose(row[:3], box.center, atol=1e-6)
            np.testing.assert_allclose(row[3:6], box.wlh[[1, 0, 2]])
            assert abs(np.sin((row[6] - box.orientation.yaw_pitch_roll[0]) / 2)) < 1e-9
            moved = rotation.rotate(nusc.box_velocity(box.token))[:2]
            np.testing.assert_allclose(velocity, moved, atol=1e-9)


@pytest.fixture(scope='module')
def reference():
    """Import mmdet3d's own converter, which its package carries outside of its modules."""
    import mmdet3d

    path = Path(mmdet3d.__path__[0]) / '.mim/tools/data_converter/nuscenes_converter.py'
    if not path.is_file():
        pytest.skip(f'skipped: {path} not found')
    spec = importlib.util.spec_from_file_location('reference_converter', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(found, expected, name=''):
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), name
        for key in expected:
            assert_same(found[key], expected[key], f'{name}.{key}')
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected), name
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f'{name}[{index}]')
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == 'f':
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    else:
        assert np.all(np.asarray(found) == np.asarray(expected)), name


def test_plain_infos_equal_mmdet3ds_own_converter(reference, nusc, written):
    val = {scene['token'] for scene in nusc.scene if scene['name'] == 'scene-0003'}
    train = {scene['token'] for scene in nusc.scene} - val
    expected = dict(
        zip(('train', 'val'), reference._fill_trainval_infos(nusc, train, val, max_sweeps=3), strict=True)
    )
    for split, rows in expected.items():
        found = written[f'toy_infos_{split}.pkl']['infos']
        assert len(found) == len(rows) == 4
        for row in rows:
            row['lidar_path'] = str(row['lidar_path'])
        assert_same(found, rows, split)
