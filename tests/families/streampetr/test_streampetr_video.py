"""`streampetr_video.py` draws a scene by either engine or both, from a data set in nuScenes' format."""

import pickle

import cv2
import numpy as np
import pytest
import torch

import toy_streampetr
import toy_streampetr_export as toy
from mmdeploy_ext.cli import video_app
from mmdeploy_ext.preprocess.cameras import CAMERAS

CONFIG = """
import toy_streampetr as toy
from projects.configs.nuscenes_stream import image_augmentation, stream_data

model = toy.model_cfg()
data = stream_data(
    image_augmentation((32, 96), (0.6, 0.7), source=(90, 160)), root={root!r},
    infos='infos', workers_per_gpu=0)
"""


def run(*arguments):
    return video_app.main(list(map(str, arguments)))


def write_dataset(root):
    """Two scenes of three and two frames; every camera looks along x of the LiDAR frame."""
    rng = np.random.default_rng(0)
    rotation = [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    infos = []
    for index, (scene, frame) in enumerate([('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1)]):
        cams = {}
        for camera in CAMERAS:
            file = root / f'{camera}_{index}.png'
            cv2.imwrite(str(file), rng.integers(0, 256, (90, 160, 3), np.uint8))
            cams[camera] = dict(
                data_path=str(file),
                timestamp=int(1.5e15) + index * 500000,
                sensor2lidar_rotation=np.array(rotation),
                sensor2lidar_translation=np.zeros(3),
                cam_intrinsic=np.array([[100.0, 0, 80], [0, 100, 70], [0, 0, 1]]),
            )
        infos.append(
            dict(
                token=f'{scene}{frame}',
                prev='',
                next='',
                scene_token=scene,
                frame_idx=frame,
                timestamp=int(1.5e15) + index * 500000,
                lidar_path='',
                sweeps=[],
                lidar2ego_translation=[0.0, 0, 1.8],
                lidar2ego_rotation=[1.0, 0, 0, 0],
                ego2global_translation=[600.0 + frame, 1600, 0],
                ego2global_rotation=[1.0, 0, 0, 0],
                cams=cams,
            )
        )
    with open(root / 'infos_val.pkl', 'wb') as stream:
        pickle.dump(dict(infos=infos, metadata=dict(version='v1.0-trainval')), stream)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a data set, a config, a checkpoint and an export."""
    root = tmp_path_factory.mktemp('video')
    write_dataset(root)
    (root / 'toy.py').write_text(CONFIG.format(root=f'{root}/'))
    torch.save(dict(state_dict=toy.model().state_dict(), meta={}), root / 'toy.pth')
    (root / 'deploy').mkdir()
    toy.write(root / 'deploy')
    assert len(CAMERAS) == toy_streampetr.NUM_CAMS
    return root


def pictures(folder):
    return [cv2.imread(str(path)) for path in sorted(folder.glob('*.png'))]


def test_onnx_alone_draws_every_frame_of_a_scene(place, tmp_path, capsys):
    assert run(place / 'toy.py', '--onnx', place / 'deploy', '--out', tmp_path, '--score-thr', 0) == 0
    drawn = pictures(tmp_path)
    assert len(drawn) == 3 and len({picture.shape for picture in drawn}) == 1
    assert (drawn[0] != drawn[1]).any()
    assert '3 frames of scene 0; ONNX Runtime' in capsys.readouterr().out


def test_both_engines_are_side_by_side_and_agree(place, tmp_path, capsys):
    out = tmp_path / 'new' / 'scene.mp4'
    arguments = [place / 'toy.py', place / 'toy.pth', '--onnx', place / 'deploy', '--scene', 1, '--out']
    assert run(*arguments, out, '--threads', 1, '--score-thr', 0) == 0
    assert run(*arguments, tmp_path / 'png', '--frames', 1, '--score-thr', 0) == 0
    assert 'PyTorch' in capsys.readouterr().out
    video, (picture,) = cv2.VideoCapture(str(out)), pictures(tmp_path / 'png')
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert (video.get(cv2.CAP_PROP_FRAME_HEIGHT), video.get(cv2.CAP_PROP_FRAME_WIDTH)) == picture.shape[:2]
    upper, lower = (part[28:, :1300] for part in np.split(picture, 2))
    assert np.abs(upper.astype(int) - lower.astype(int)).mean() < 1
    assert sorted(path.name for path in out.parent.iterdir()) == ['scene.mp4']
