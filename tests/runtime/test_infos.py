"""Frames of info files: poses and calibrations as nuScenes means them, in order; what lacks is told."""

import numpy as np
import pytest
from pyquaternion import Quaternion

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.infos import find_file, past_sweeps, read_frames, read_infos
from mmdeploy_ext.spec.preparation import CAMERAS
from toy_rig import RULE, infos, write_set


def mirror(info):
    camera = info['cams']['CAM_BACK']
    camera['sensor2lidar_rotation'] = camera['sensor2lidar_rotation'] * [-1, 1, 1]


def write(folder, change):
    write_set(folder, change)
    return folder / 'set/toy_val.pkl'


def test_poses_and_calibrations_are_those_of_the_info(tmp_path):
    turns = Quaternion(axis=[1, 2, 3], degrees=50), Quaternion(axis=[0, 1, 1], degrees=200) * 1.5  # not unit

    def turn(infos):
        for info in infos:
            info.update(lidar2ego_rotation=turns[0].elements.tolist(), ego2global_rotation=list(turns[1]))
            for index, name in enumerate(CAMERAS):
                info['cams'][name]['timestamp'] += 1000 * index
            info['cams'] = dict(reversed(info['cams'].items()))  # the order of the rule counts, not this one

    path = write(tmp_path, turn)
    info, frame = infos()[1], read_frames(path, RULE)[1]
    point = np.array([3.0, -2.0, 1.0])
    expected = turns[1].unit.rotate(turns[0].rotate(point) + info['lidar2ego_translation'])
    moved = frame.ego_pose @ [*point, 1]
    np.testing.assert_allclose(moved[:3], expected + info['ego2global_translation'], atol=1e-9)
    for index, name in enumerate(CAMERAS):
        camera = info['cams'][name]
        seen = camera['sensor2lidar_rotation'].T @ (point - camera['sensor2lidar_translation'])
        np.testing.assert_allclose((frame.lidar2cam[index] @ [*point, 1])[:3], seen, atol=1e-12)
        pixels = (frame.lidar2img[index] @ [*point, 1])[:3]
        np.testing.assert_allclose(pixels, camera['cam_intrinsic'] @ seen, atol=1e-9)
        assert frame.pictures[index].name == f'{name}.png'
        assert frame.camera_times_s[index] == (camera['timestamp'] + 1000 * index) / 1e6
    assert frame.timestamp_s == info['timestamp'] / 1e6


def test_frames_come_scene_by_scene_in_the_order_of_time(tmp_path):
    frames = read_frames(write(tmp_path, lambda infos: infos.reverse()), RULE)
    assert [frame.name for frame in frames] == ['b0', 'b1', 'a0', 'a1', 'a2']
    assert {frame.scene_token for frame in frames} == {'a', 'b'}


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda info: info.pop('ego2global_rotation'), 'ego2global_rotation'),
        (lambda info: info['cams']['CAM_BACK'].pop('cam_intrinsic'), 'CAM_BACK: .*cam_intrinsic'),
        (lambda info: info['cams']['CAM_BACK'].update(data_path='x.png'), 'x.png'),
        (mirror, 'reflection'),
        (lambda info: info['cams'].pop('CAM_BACK'), 'CAM_BACK'),
        (lambda info: info.update(ego2global_rotation=[0, 0, 0, 0]), 'ego2global_rotation'),
        (lambda info: info.update(ego2global_translation=[1, np.nan, 0]), 'ego2global_translation'),
        (lambda info: info.update(lidar2ego_rotation='1 0 0 0'), 'lidar2ego_rotation'),
        (lambda info: info.update(timestamp=None), 'timestamp'),
        (lambda info: info.update(scene_token=[1]), 'scene_token'),
    ],
)
def test_what_a_frame_lacks_is_told_with_the_file(tmp_path, change, expected):
    with pytest.raises(DataError, match=rf'toy_val\.pkl: .*{expected}'):
        read_frames(write(tmp_path, lambda infos: change(infos[0])), RULE)


def test_a_picture_that_is_not_there_is_black_where_that_is_asked_for(tmp_path):
    def lose(infos):
        infos[0]['cams']['CAM_BACK'].update(data_path='x.png')
        for camera in infos[1]['cams'].values():
            camera['data_path'] = 'x.png'

    first, second, third = read_frames(write(tmp_path, lose), RULE, missing=True)[:3]
    found, place = first.read_pictures(), CAMERAS.index('CAM_BACK')
    assert first.pictures[place] is None and not found[place].any()
    assert [picture.any() for picture in found].count(False) == 1
    assert {picture.shape for picture in found} == {found[0].shape} and found[0].dtype == np.uint8
    assert None not in third.pictures
    with pytest.raises(DataError, match=f'{second.name}'):
        second.read_pictures()


def test_a_file_is_found_below_the_data_root_whatever_folders_its_old_path_had(tmp_path):
    """Only the part from the first folder called samples or sweeps on was tried."""
    sweep = tmp_path / 'set/samples/LIDAR_TOP/a.bin'
    sweep.parent.mkdir(parents=True)
    sweep.touch()
    for old in ('data/nuscenes', 'samples/nuscenes', 'sweeps/samples/x'):
        path = f'/of/another/machine/{old}/samples/LIDAR_TOP/a.bin'
        assert find_file(path, tmp_path / 'infos.pkl', tmp_path / 'set') == sweep


def test_a_file_without_infos_is_refused(tmp_path):
    files = {'none.pkl': None, 'cut.pkl': b'1', 'text.json': b'"a"', 'empty.json': b'[]'}
    for (name, content), said in zip(
        files.items(), ('no such', 'be read', 'no list', 'is empty'), strict=True
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f'{name}: .*{said}'):
            read_infos(tmp_path / name)
    with pytest.raises(DataError, match='expected a text'):
        find_file(3, tmp_path / 'infos.pkl')


@pytest.mark.parametrize('sweeps', [None, 'a', ['a'], [dict(data_path=1)], [dict(data_path='a.bin')]])
def test_a_sweep_of_the_past_without_path_or_pose_is_refused(sweeps):
    with pytest.raises(DataError, match=r'info 3: sweeps'):
        past_sweeps(dict(sweeps=sweeps), 'info 3')
