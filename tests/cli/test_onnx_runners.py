"""The runners: the detections of PyTorch from a file alone, with three packages; bad input by name."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from marking import in_suite
from mmdeploy_ext.cli import run_images
from mmdeploy_ext.families import mmdet_plugin  # noqa: F401  (registers the families)
from mmdeploy_ext.families.synthetic import coco
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from mmdeploy_ext.runtime.tasks.bbox2d import match_detections
from refusals import refused
from toy_atss import PICTURE, load_toy, toy_file

REPOSITORY = Path(__file__).resolve().parents[2]
FULL, REST = 'onnx_with_postprocess', 'onnx_no_topk_nms'
FORMS = 'full', 'decode', 'raw'
BLOCK = """
import runpy, sys
ALLOWED = {'numpy', 'cv2', 'onnxruntime', 'mmdeploy_ext', 'google', 'flatbuffers', 'packaging', 'coloredlogs'}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] not in ALLOWED | set(sys.stdlib_module_names):
            raise ModuleNotFoundError('blocked: ' + name, name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def tool(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f'tools/onnx/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('images')
    (folder / 'inner').mkdir()
    for index, (name, size) in enumerate(
        {
            'one.jpg': (192, 256),
            'one.bmp': (150, 210),
            'two.png': (230, 180),
            'inner/one.jpg': (96, 128),
        }.items()
    ):
        cv2.imwrite(str(folder / name), coco.sample(5, 'picture', index, size)[0])
    return folder


def from_json(entries) -> Detections:
    return Detections(
        np.array([entry['bbox_xyxy'] for entry in entries], np.float32).reshape(-1, 4),
        np.array([entry['score'] for entry in entries], np.float32),
        np.array([entry['label'] for entry in entries], np.int64),
    )


@pytest.mark.parametrize('form', in_suite(FORMS, 'full', 'raw'))
def test_every_form_gives_the_detections_of_pytorch_in_pixels_of_the_image(form, images, tmp_path):
    detector = load_toy()
    runner = tool(FULL if form == 'full' else REST)
    paths = [str(images / 'one.jpg'), str(PICTURE)]
    argv = [toy_file(form), *paths, '--out', str(tmp_path / 'out'), '--json', str(tmp_path / 'found.json')]
    score_thr = 0.3 if form == 'full' else 0.5
    assert runner.main([*argv, *([] if form == 'full' else ['--score-thr', '0.5'])]) == 0
    for entry in json.loads((tmp_path / 'found.json').read_text())['images']:
        picture = read_image(entry['image'])
        prepared = prepare_image(detector.rule, picture)
        (wanted,) = detector.family.reference(detector.model).results([prepared], True)
        found = from_json(entry['detections'])
        # the JSON rounds to 1e-3 pixel, which a sliver of a box feels
        row = match_detections(entry['image'], wanted, found, iou_bar=0.995)
        assert row.passed and row.matched >= 3, row
        assert found.bboxes_xyxy.max() <= max(picture.shape) and (np.diff(found.scores) <= 0).all()
        assert entry['drawn'] == len(found.above(score_thr)) < len(found)
        assert (entry['height'], entry['width']) == picture.shape[:2]


def test_a_runner_needs_three_packages_and_no_working_directory(images, tmp_path):
    script = str(REPOSITORY / f'tools/onnx/{FULL}.py')
    done = subprocess.run(
        [sys.executable, '-c', BLOCK, script, toy_file(), str(images / 'one.jpg')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == '' and 'detections' in done.stdout
    assert read_image(tmp_path / 'work_dirs/onnx_results/one_det.jpg').shape == (192 * 3, 256 * 3, 3)


def test_a_folder_gives_a_picture_per_image_each_under_its_own_name(images, tmp_path, capsys):
    out = tmp_path / 'out'
    assert tool(FULL).main([toy_file(), str(images), '--out', str(out)]) == 0
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())
    assert written == ['inner/one_det.jpg', 'one_det.jpg', 'one_det.png', 'two_det.png']
    assert all(read_image(out / name).size for name in written)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[-1].startswith('4 images, ')


def test_equal_stems_get_different_pictures(tmp_path):
    for name in ('a/x.png', 'b/x.png', 'b/x.tif'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'1')
    targets = run_images.plan_pictures([str(tmp_path / 'a'), str(tmp_path / 'b')], tmp_path / 'out')
    assert [path.name for path in targets.values()] == ['x_det.png', 'x_det_2.png', 'x_det_3.png']


@pytest.mark.parametrize(
    ('name', 'words', 'said'),
    [
        (FULL, '{raw} {images}/one.jpg', 'onnx_no_topk_nms.py'),
        (FULL, '{full} {images}/one.jpg --score-thr 3', '--score-thr'),
        (FULL, '{full} {images}/one.jpg --providers NoSuchProvider', 'NoSuchProvider'),
    ],
)
def test_a_wrong_word_is_one_line_and_writes_nothing(
    name, words, said, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    argv = words.format(full=toy_file(), raw=toy_file('raw'), images=images).split()
    assert said in refused(capsys, tool(name).main, *argv)
    assert not list(tmp_path.iterdir())
