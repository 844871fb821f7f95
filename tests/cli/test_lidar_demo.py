"""`lidar_demo.py`: a sweep in, a picture with both engines' boxes out."""

import cv2
import pytest

import lidar_demo_app
import toy_centerpoint


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported()


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / 'sweep.pcd.bin'
    toy_centerpoint.sweep(5, 500).tofile(path)
    return str(path)


def demo(toy, *args):
    _, _, config, checkpoint = toy
    words = [*args, '--config', config, '--checkpoint', checkpoint]
    return lidar_demo_app.main(list(map(str, words)))


def test_both_engines_side_by_side(toy, sweep, tmp_path, capsys):
    out = tmp_path / 'both.png'
    assert demo(toy, sweep, '--onnx', toy[1], '--out', out, '--score-thr', '0.1') == 0
    said = capsys.readouterr().out
    assert 'PyTorch:' in said
    assert 'ONNX Runtime:' in said
    assert ': equal' in said
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 1.8 * picture.shape[0]  # two views
    left, right = picture[28:, :560], picture[28:, -560:]
    # the same boxes over the same points; only the titles differ
    assert (left[40:] == right[40:]).mean() > 0.99
    assert left.std() > 5
