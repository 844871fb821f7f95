"""`streampetr_video.py` draws a scene by either engine or both, from a data set in nuScenes' format."""

import cv2
import numpy as np
import pytest

import toy_rig
import toy_stream_files as files
import video_app
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import command
from mmdeploy_ext.spec.registry import registration_of

ENGINES = ['torch', 'onnx']
FRAMES_OF_SCENES = [len(times) for times in toy_rig.TIMES_S.values()]


def run(*arguments):
    return video_app.main(list(map(str, arguments)))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a data set, a config, a checkpoint and an export."""
    return files.write_model(tmp_path_factory.mktemp('video'))


def pictures(folder):
    return [cv2.imread(str(path)) for path in sorted(folder.glob('*.png'))]


def test_onnx_alone_draws_every_frame_of_a_scene(place, tmp_path, capsys):
    words = [place / 'toy_stream.py', '--onnx', place / 'deploy', '--out', tmp_path, '--score-thr', 0]
    assert run(*words) == 0
    drawn = pictures(tmp_path)
    assert len(drawn) == FRAMES_OF_SCENES[0] and len({picture.shape for picture in drawn}) == 1
    assert (drawn[0] != drawn[1]).any()
    assert 'ONNX Runtime' in capsys.readouterr().out


def test_both_engines_are_side_by_side_and_agree(place, tmp_path, capsys):
    out = tmp_path / 'new' / 'scene.mp4'
    arguments = [place / 'toy_stream.py', place / 'toy.pth', '--onnx', place / 'deploy', '--scene', 1]
    arguments += ['--score-thr', 0, '--threads', 1, '--out']
    assert run(*arguments, out) == 0
    assert run(*arguments, tmp_path / 'png', '--frames', 1) == 0
    assert 'PyTorch' in capsys.readouterr().out
    video, (picture,) = cv2.VideoCapture(str(out)), pictures(tmp_path / 'png')
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES_OF_SCENES[1]
    assert (video.get(cv2.CAP_PROP_FRAME_HEIGHT), video.get(cv2.CAP_PROP_FRAME_WIDTH)) == picture.shape[:2]
    upper, lower = (part[28:, :1300] for part in np.split(picture, 2))
    assert np.abs(upper.astype(int) - lower.astype(int)).mean() < 1
    assert sorted(path.name for path in out.parent.iterdir()) == ['scene.mp4']


def test_the_command_behind_a_proof_makes_a_film(place, tmp_path, capsys):
    (infos,) = place.rglob('*val*.pkl')
    text = registration_of('streampetr').used_by[''].format(file=place / 'deploy')
    words = text.replace('INFOS.pkl', str(infos)).replace('work_dirs', str(tmp_path)).split()
    assert command.main(words) == 0
    film = cv2.VideoCapture(str(tmp_path / 'film.mp4'))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == sum(FRAMES_OF_SCENES)


def test_the_engines_are_those_of_the_given_models_and_a_scene_is_all_its_samples():
    def engines(words):
        return video_app.engines_to_run(video_app.build_parser().parse_args(['c.py', *words, '--out', 'x']))

    models = [[], ['--engine', 'onnx'], ['--engine', 'both']]
    assert [engines(['k', '--onnx', 'o', *words]) for words in models] == [ENGINES, ENGINES[1:], ENGINES]
    assert [engines(words) for words in (['k'], ['--onnx', 'o'])] == [['torch'], ['onnx']]
    tokens = ['b', 'b', 'a', 'a', 'b']
    assert [video_app.scene_indices(tokens, *which) for which in ((0, None), (1, 1))] == [[0, 1, 4], [2]]
    with pytest.raises(UsageError, match='--engine both'):
        engines(['k', '--engine', 'both'])
    with pytest.raises(UsageError, match='--scene 2'):
        video_app.scene_indices(tokens, 2, None)
