"""onnx_solo.py: the instances of PyTorch from a file alone, with three packages, drawn and as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from instances_json import decoded
from marking import in_suite
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.synthetic import coco
from mmdeploy_ext.tasks.mask import match_detections

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / 'tools/onnx/onnx_solo.py'
CONFIG = str(REPOSITORY / 'configs/demo/solov2_toy.py')
CHECKPOINT = str(REPOSITORY / 'demo/checkpoints/solov2_toy.pth')
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


@pytest.fixture(scope='module')
def deployment():
    return deploy.load(CONFIG, CHECKPOINT)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two pictures of unlike sizes and an empty one."""
    folder = tmp_path_factory.mktemp('images')
    cv2.imwrite(str(folder / 'one.png'), coco.sample(5, 'picture', 0, (192, 256))[0])
    cv2.imwrite(str(folder / 'two.png'), coco.sample(5, 'picture', 1, (230, 180))[0])
    cv2.imwrite(str(folder / 'void.png'), np.full((150, 200, 3), 114, np.uint8))
    return folder


@pytest.fixture(scope='module', params=in_suite(['full', 'raw'], 'full'))
def found(request, deployment, images, tmp_path_factory):
    """Return the JSON and the folder of pictures that the tool writes for a folder of images."""
    folder = tmp_path_factory.mktemp(request.param)
    model = folder / 'solo.onnx'
    options = deploy.resolve(
        deployment.family.choose(form=request.param, dynamic=True), deployment.model, deployment.rule
    )
    traced = deploy.prepare_fixed(deployment.rule, read_image(images / 'one.png'), 128, 160)
    export_files(deployment, options, str(model), [traced])
    command = [sys.executable, '-c', BLOCK, str(SCRIPT), str(model), str(images)]
    command += ['--out', str(folder / 'out'), '--json', str(folder / 'found.json')]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == '' and done.stdout.splitlines()[-1].startswith('3 images, ')
    return json.loads((folder / 'found.json').read_text()), folder / 'out'


def test_the_instances_of_pytorch_in_pixels_of_the_image(found, deployment):
    entries = {Path(entry['image']).name: entry for entry in found[0]['images']}
    assert list(found[0]['classes']) == list(deployment.model.CLASSES)
    for name, least in (('one.png', 10), ('two.png', 10), ('void.png', 0)):
        prepared = deployment.rule.apply(read_image(entries[name]['image']))
        wanted = deployment.family.reference(deployment.model).results([prepared], True)[0]
        row = match_detections(name, wanted, decoded(entries[name]))
        assert row.passed and row.matched >= least, row
        assert row.matched == 0 or (row.worst_iou >= 0.995 and row.worst_score <= 1e-3), row
        assert entries[name]['drawn'] == (wanted.scores >= 0.3).sum()


def test_instances_are_drawn_where_they_are(found, images):
    entries, folder = found
    assert sorted(path.name for path in folder.iterdir()) == ['one_det.png', 'two_det.png', 'void_det.png']
    for entry in entries['images']:
        picture, image = read_image(entry['picture']), read_image(entry['image'])
        factor = picture.shape[0] // image.shape[0]
        assert picture.shape[:2] == (image.shape[0] * factor, image.shape[1] * factor)
        plain = cv2.resize(image, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        changed = (np.abs(picture.astype(int) - plain).max(axis=2) > 20).reshape(-1)
        instances = decoded(entry)
        covered = instances.masks[instances.scores >= 0.3].any(axis=0).astype(np.uint8)
        inside = cv2.resize(covered, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST).reshape(-1) > 0
        if entry['drawn']:
            assert changed[inside].mean() > 0.5 > changed[~inside].mean()
