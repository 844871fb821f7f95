"""`mm2onnx run` of a film or a camera: each picture gets the detections of the picture alone."""

import functools
import http.server
import threading

import cv2
import pytest

from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import run_app
from mmdeploy_ext.families.synthetic import coco
from mmdeploy_ext.runtime import film
from refusals import refused
from toy_atss import toy_file

FPS, COUNT = 12.5, 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A film, and its pictures as a decoder gives them."""
    folder = tmp_path_factory.mktemp('film')
    with film.open_writer(folder / 'drive.mp4', FPS) as add:
        for index in range(COUNT):
            add(coco.sample(5, 'picture', index, (96, 128))[0])
    for index, picture in enumerate(pictures_of(folder / 'drive.mp4')):
        cv2.imwrite(str(folder / f'{index}.png'), picture)
    return folder


def pictures_of(path):
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return [capture.read()[1] for _ in range(count)]


def found_in(*words):
    report = words[-1] / 'found.json'
    assert run_app.main(list(map(str, (toy_file(), *words[:-1], '--json', report)))) == 0
    return read_json(report)


def test_each_picture_of_a_film_gets_the_detections_of_the_picture_alone(folder, tmp_path):
    single = found_in(*sorted(folder.glob('*.png')), '--out', tmp_path / 'single', tmp_path)['images']
    frames = found_in(folder / 'drive.mp4', '--out', tmp_path / 'out.mp4', tmp_path)['frames']
    assert [frame['detections'] for frame in frames] == [entry['detections'] for entry in single]
    assert len(frames) == COUNT and any(frame['detections'] for frame in frames)
    drawn = pictures_of(tmp_path / 'out.mp4')
    assert [picture.shape for picture in drawn] == [(96 * 7, 128 * 7, 3)] * COUNT
    assert cv2.VideoCapture(str(tmp_path / 'out.mp4')).get(cv2.CAP_PROP_FPS) == FPS


def test_a_camera_runs_until_it_is_interrupted_and_leaves_a_whole_film(folder, tmp_path, monkeypatch):
    class Camera:
        def __init__(self, index):
            assert index == 0
            self.film = capture(str(folder / 'drive.mp4'))

        def __getattr__(self, name):
            return getattr(self.film, name)

        def read(self):
            found, picture = self.film.read()
            if not found:
                raise KeyboardInterrupt
            return found, picture

    capture = cv2.VideoCapture
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    assert len(found_in('0', '--out', tmp_path / 'films', tmp_path)['frames']) == COUNT
    monkeypatch.undo()
    assert len(pictures_of(tmp_path / 'films/0_det.mp4')) >= COUNT


def test_the_address_of_a_camera_is_read_and_the_film_plays_in_a_browser(folder, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/drive.mp4'
        assert len(found_in(address, '--out', tmp_path / 'films', tmp_path)['frames']) == COUNT
        server.shutdown()
    written = cv2.VideoCapture(str(tmp_path / 'films/drive_det.mp4'))
    code = int(written.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little').decode()
    assert code.lower() in ('avc1', 'h264', 'vp90')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        ('{films}/drive.mp4 {films}/0.png', 'one film'),
        ('{films}/drive.mp4 --out {films}/drive.mp4', '--out'),
        ('{films}/drive.mp4 --out {out}/a.png', '.mp4'),
        ('{out}/none.mp4', 'no such film'),
        ('{films}/cut.mp4', 'damaged'),
    ],
)
def test_a_film_that_cannot_be_used_is_one_line_and_writes_nothing(words, said, folder, tmp_path, capsys):
    (folder / 'cut.mp4').write_bytes((folder / 'drive.mp4').read_bytes()[:100])
    words = [toy_file(), *words.format(films=folder, out=tmp_path).split()]
    assert said in refused(capsys, run_app.main, *words)
    assert not list(tmp_path.iterdir())
