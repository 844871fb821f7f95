"""The runners: the detections of PyTorch from a file alone, with three packages; bad input by name."""

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from marking import in_suite
from mmdeploy_ext.cli import run_images
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families import mmdet_plugin  # noqa: F401  (registers the families)
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.seeded.weights import fill_seeded
from mmdeploy_ext.synthetic import coco
from mmdeploy_ext.tasks.bbox2d import match_detections
from refusals import refused

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / 'configs/demo/atss_toy.py')
FULL, REST = 'onnx_with_postprocess', 'onnx_no_topk_nms'
FILES = {
    'full': FAMILIES['dense'].choose(form='full', dynamic=True),
    'decode': FAMILIES['dense'].choose(form='decode', dynamic=True),
    'raw': FAMILIES['dense'].choose(form='raw', dynamic=True),
    'raw_fixed_batch': FAMILIES['dense'].choose(form='raw', height=160, width=224, batch=2),
}
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
def deployment(tmp_path_factory):
    cfg = load_config(CONFIG)
    checkpoint = tmp_path_factory.mktemp('weights') / 'toy.pth'
    torch.save(dict(state_dict=fill_seeded(find_family(cfg).build(cfg)).state_dict()), checkpoint)
    return deploy.load(CONFIG, str(checkpoint))


@pytest.fixture(scope='module')
def model(deployment, images, tmp_path_factory) -> Callable[[str], Path]:
    """Return name of `FILES` -> the file, exported once."""
    folder, picture = tmp_path_factory.mktemp('models'), read_image(images / 'one.jpg')

    @functools.cache
    def exported(name):
        options = deploy.resolve(FILES[name], deployment.model, deployment.rule)
        prepared = deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)
        export_files(deployment, options, str(folder / f'{name}.onnx'), [prepared])
        return folder / f'{name}.onnx'

    return exported


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


def reference(deployment, options: Options, image_bgr: np.ndarray) -> Detections:
    """Return mmdet's own detections in pixels of the image."""
    rule = deployment.rule
    prepared = (
        rule.apply(image_bgr)
        if options.dynamic
        else deploy.prepare_fixed(rule, image_bgr, options.height, options.width)
    )
    return deployment.family.reference(deployment.model).results([prepared], True)[0]


def from_json(entries) -> Detections:
    return Detections(
        np.array([entry['bbox_xyxy'] for entry in entries], np.float32).reshape(-1, 4),
        np.array([entry['score'] for entry in entries], np.float32),
        np.array([entry['label'] for entry in entries], np.int64),
    )


@pytest.mark.parametrize('name', in_suite(FILES, 'full', 'raw'))
def test_every_form_gives_the_detections_of_pytorch_in_pixels_of_the_image(
    name, deployment, model, images, tmp_path
):
    runner = tool(FULL if name.startswith('full') else REST)
    paths = [str(images / 'one.jpg'), str(images / 'two.png')]
    argv = [str(model(name)), *paths, '--out', str(tmp_path / 'out'), '--json', str(tmp_path / 'found.json')]
    assert runner.main(argv) == 0
    for entry in json.loads((tmp_path / 'found.json').read_text())['images']:
        picture = read_image(entry['image'])
        wanted = reference(deployment, FILES[name], picture)
        found = from_json(entry['detections'])
        # the JSON rounds to 1e-3 pixel, which a sliver of a box feels
        row = match_detections(entry['image'], wanted, found, iou_bar=0.995)
        assert row.passed and row.matched >= 10, row
        assert found.bboxes_xyxy.max() <= max(picture.shape) and (np.diff(found.scores) <= 0).all()
        assert entry['drawn'] == len(found.above(0.3))


def test_a_runner_needs_three_packages_and_no_working_directory(model, images, tmp_path):
    script = str(REPOSITORY / f'tools/onnx/{FULL}.py')
    done = subprocess.run(
        [sys.executable, '-c', BLOCK, script, str(model('full')), str(images / 'one.jpg')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == '' and 'detections' in done.stdout
    assert read_image(tmp_path / 'work_dirs/onnx_results/one_det.jpg').shape == (192 * 3, 256 * 3, 3)


def test_a_folder_gives_a_picture_per_image_each_under_its_own_name(model, images, tmp_path, capsys):
    out = tmp_path / 'out'
    assert tool(FULL).main([str(model('full')), str(images), '--out', str(out)]) == 0
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
    name, words, said, model, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    argv = words.format(full=model('full'), raw=model('raw'), images=images).split()
    assert said in refused(capsys, tool(name).main, *argv)
    assert not list(tmp_path.iterdir())
