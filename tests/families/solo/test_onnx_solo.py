"""onnx_solo.py: the instances of PyTorch from a file alone, drawn and as JSON."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic import coco
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from mmdeploy_ext.runtime.tasks.mask import match_detections
from toy_atss import REPO

LEAST = {'one.png': 10, 'two.png': 10, 'void.png': 0}


@pytest.fixture(scope='module')
def detector():
    return detectors.load(f'{REPO}/configs/demo/solov2_toy.py', f'{REPO}/demo/checkpoints/solov2_toy.pth')


@pytest.fixture(scope='module')
def found(detector, tmp_path_factory):
    """Return the JSON that the tool writes for two pictures of unlike sizes and an empty one."""
    folder = tmp_path_factory.mktemp('solo')
    images, model = folder / 'images', str(folder / 'solo.onnx')
    images.mkdir()
    cv2.imwrite(str(images / 'one.png'), coco.sample(5, 'picture', 0, (192, 256))[0])
    cv2.imwrite(str(images / 'two.png'), coco.sample(5, 'picture', 1, (230, 180))[0])
    cv2.imwrite(str(images / 'void.png'), np.full((150, 200, 3), 114, np.uint8))
    options = detector.family.choose(form='full', dynamic=True)
    options = detectors.resolve(options, detector.model, detector.rule)
    traced = detectors.prepare_fixed(detector.rule, read_image(images / 'one.png'), 128, 160)
    export_files(detector, options, model, [traced])
    words = [model, str(images), '--out', str(folder / 'out'), '--json', str(folder / 'found.json')]
    assert runpy.run_path(str(REPO / 'tools/onnx/onnx_solo.py'))['main'](words) == 0
    return json.loads((folder / 'found.json').read_text())


def decoded(entry):
    """Return the instances of one image's JSON entry."""
    size = entry['height'], entry['width']
    masks = [rle.decode(rle.frPyObjects(one['segmentation'], *size)) for one in entry['detections']]
    return Instances(
        np.stack(masks).astype(bool) if masks else np.zeros((0, *size), bool),
        np.array([one['score'] for one in entry['detections']], np.float32),
        np.array([one['label'] for one in entry['detections']], np.int64),
    )


def test_the_instances_of_pytorch_in_pixels_of_the_image(found, detector):
    entries = {Path(entry['image']).name: entry for entry in found['images']}
    assert list(found['classes']) == list(detector.model.CLASSES)
    for name, least in LEAST.items():
        prepared = prepare_image(detector.rule, read_image(entries[name]['image']))
        wanted = detector.family.reference(detector.model).results([prepared], True)[0]
        row = match_detections(name, wanted, decoded(entries[name]))
        assert row.passed and row.matched >= least, row
        assert row.matched == 0 or (row.worst_iou >= 0.995 and row.worst_score <= 1e-3), row
        assert entries[name]['drawn'] == (wanted.scores >= 0.3).sum()


def test_instances_are_drawn_where_they_are(found):
    for entry in found['images']:
        picture, image = read_image(entry['picture']), read_image(entry['image'])
        plain = cv2.resize(image, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        changed = np.abs(picture.astype(int) - plain).max(axis=2) > 20
        instances = decoded(entry)
        covered = instances.masks[instances.scores >= 0.3].any(axis=0).astype(np.uint8)
        inside = cv2.resize(covered, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        if entry['drawn']:
            assert changed[inside].mean() > 0.5 > changed[~inside].mean()
