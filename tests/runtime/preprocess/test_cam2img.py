"""Cameras that people write wrongly are refused with the entry, for pictures and for rigs."""

import json

import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.runtime.preprocess.cam2img import (
    camera_for,
    check_camera,
    check_projection,
    read_cameras,
    square_matrix,
)
from mmdeploy_ext.runtime.preprocess.cameras import calibrate
from toy_rig import RULE, write_set

HEIGHT, WIDTH = RULE.source
RIGHT = np.array([[0.8 * WIDTH, 0, 0.51 * WIDTH], [0, 0.8 * WIDTH, 0.55 * HEIGHT], [0, 0, 1]])
LIDAR2CAM = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.3], [1, 0, 0, -0.4], [0, 0, 0, 1]])
WRONG = {
    'transposed': (RIGHT.T, r'\[2\]\[0\]'),
    'scaled': (RIGHT * 5, r'\[2\]\[2\]'),
    'negated': (-RIGHT, r'\[2\]\[2\]'),
    'mirrored': (RIGHT * [1, -1, 1], r'\[1\]\[1\]'),
    'in millimetres': (np.diag([0.004, 0.004, 1]) @ RIGHT, r'\[0\]\[0\]'),
    'of a larger picture': (np.diag([4, 4, 1]) @ RIGHT, r'\[0\]\[2\]'),
}
PUBLISHED = {
    'nuScenes': ([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]], (900, 1600)),
    'nuScenes, back': ([[809.2, 0, 829.2], [0, 809.2, 481.8], [0, 0, 1]], (900, 1600)),
    'KITTI': ([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.216], [0, 0, 1, 0.00275]], (375, 1242)),
    'SUN RGB-D': ([[529.5, 0, 365], [0, 529.5, 265], [0, 0, 1]], (530, 730)),
}
"""Matrix and picture size of a data set's cameras."""


@pytest.mark.parametrize('case', WRONG)
def test_a_wrong_matrix_is_refused_with_camera_and_entry(case, tmp_path):
    matrix, entry = WRONG[case]
    with pytest.raises(ShapeError, match=entry):
        check_camera(square_matrix(matrix), RULE.source)
    with pytest.raises(ShapeError, match='lidar2img'):
        check_projection(square_matrix(matrix) @ LIDAR2CAM, RULE.source)
    write_set(tmp_path, lambda infos: infos[0]['cams']['CAM_BACK'].update(cam_intrinsic=matrix))
    with pytest.raises(DataError, match=rf'CAM_BACK: cam_intrinsic{entry}'):
        read_frames(tmp_path / 'set/toy_val.pkl', RULE)
    with pytest.raises(DataError, match=f'CAM_FRONT.*{entry}'):
        calibrate(RULE, np.stack([matrix] * 6), np.stack([LIDAR2CAM] * 6))


@pytest.mark.parametrize('name', PUBLISHED)
def test_cameras_of_published_data_sets_are_taken(name):
    matrix, size = PUBLISHED[name]
    check_camera(square_matrix(matrix), size)
    check_projection(square_matrix(matrix) @ LIDAR2CAM, size)


def test_a_file_of_cameras_names_what_is_wrong_in_it(tmp_path):
    path, camera = tmp_path / 'cameras.json', RIGHT.tolist()
    for content in ('text', [[1, 2], [3, 4]], {'images': [{'file_name': 'a.png'}]}):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r'cameras\.json'):
            read_cameras(path)
    path.write_text(
        json.dumps(
            {'images': [dict(file_name='a.png', cam_intrinsic=m) for m in (camera, [*camera[:2], [0, 0, 2]])]}
        )
    )
    with pytest.raises(DataError, match=r'cameras\.json: .*a\.png'):
        read_cameras(path)


def test_a_picture_has_one_camera_by_the_end_of_its_path():
    cameras = {name: np.eye(4) * number for number, name in enumerate(('left/a.png', 'right/a.png'), start=1)}
    assert camera_for(cameras, '/data/right/a.png')[0, 0] == 2
    for picture, said in (('b.png', r'b\.png'), ('a.png', 'left/a.png, right/a.png')):
        with pytest.raises(DataError, match=said):
            camera_for(cameras, picture)


def test_intrinsics_alone_and_a_wrong_last_row_are_no_projection():
    with pytest.raises(ShapeError, match=r'lidar2img: .*lidar2cam'):
        check_projection(square_matrix(RIGHT))
    for value in (np.nan, 2):
        camera = square_matrix(RIGHT)
        camera[3, 3] = value
        for check in (check_camera, check_projection):
            with pytest.raises(ShapeError, match='0 0 0 1'):
                check(camera)
