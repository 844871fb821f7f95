"""One full-size ATSS R50: equal to mmdet at other sizes, with the published shapes; toys are in the suite."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import list_images, read_image
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.seeded.weights import fill_seeded
from mmdeploy_ext.synthetic import coco
from mmdeploy_ext.tasks.bbox2d import match_detections

REPO = Path(__file__).resolve().parents[3]
CONFIG = str(REPO / 'configs/atss/atss.py')
PHOTOS = REPO.parent / 'shared/data/coco_tiny'
SIZE = (608, 608)
TRACED = (192, 256)
pytestmark = pytest.mark.matrix


def pictures(count):
    """Return photographs where there are any, generated pictures otherwise."""
    if PHOTOS.is_dir():
        return [read_image(path) for path in list_images([PHOTOS / 'val2017'])[:count]]
    return [coco.sample(9, 'picture', index, (480, 640))[0] for index in range(count)]


@pytest.fixture(scope='session')
def r50(tmp_path_factory):
    """Return the deployment, the dynamic `full` file of R50 traced at 192x256, and the seconds it took."""
    folder = tmp_path_factory.mktemp('r50')
    cfg = load_config(CONFIG)
    model = fill_seeded(find_family(cfg).build(cfg))
    torch.save(dict(state_dict=model.state_dict()), folder / 'r50.pth')
    deployment = deploy.load(CONFIG, str(folder / 'r50.pth'))
    options = FAMILIES['dense'].choose(height=TRACED[0], width=TRACED[1], dynamic=True)
    traced = deploy.prepare_fixed(deployment.rule, coco.sample(9, 'picture', 7, (480, 640))[0], *TRACED)
    start = time.perf_counter()
    export_files(deployment, options, str(folder / 'r50.onnx'), [traced])
    return deployment, str(folder / 'r50.onnx'), time.perf_counter() - start


@pytest.fixture(scope='session')
def raw_file(r50, tmp_path_factory):
    deployment, _, _ = r50
    path = tmp_path_factory.mktemp('raw') / 'raw.onnx'
    options = FAMILIES['dense'].choose(form='raw', height=SIZE[0], width=SIZE[1])
    traced = deploy.prepare_fixed(deployment.rule, coco.sample(9, 'picture', 7, (480, 640))[0], *SIZE)
    export_files(deployment, options, str(path), [traced])
    return str(path)


def test_raw_tensors_have_the_published_shapes_and_equal_mmdet(r50, raw_file):
    deployment, _, _ = r50
    image = deploy.prepare_fixed(deployment.rule, pictures(1)[0], *SIZE)
    feeds = deployment.family.feeds([image], False)
    with build_backend('OnnxRuntimeBackend', raw_file) as backend:
        found = backend.infer({'input': feeds['input']})
    wanted = deployment.family.reference(deployment.model).tensors(feeds, 'raw')
    sizes = (76, 38, 19, 10, 5)
    channels = dict(cls_score=80, bbox_pred=4, centerness=1)
    assert {name: array.shape for name, array in found.items()} == {
        f'{kind}_{level}': (1, count, size, size)
        for kind, count in channels.items()
        for level, size in enumerate(sizes)
    }
    for name, reference in wanted.items():
        assert np.abs(found[name] - reference).max() <= 1e-4 * np.abs(reference).max(), name


@pytest.mark.parametrize(('size', 'batch'), [(SIZE, 1), ((320, 416), 2)])
def test_full_finds_mmdets_detections_at_other_sizes_and_batches(r50, size, batch):
    deployment, path, _ = r50
    images = [deploy.prepare_fixed(deployment.rule, picture, *size) for picture in pictures(batch)]
    with build_backend('OnnxRuntimeBackend', path) as backend:
        outputs = backend.infer(deployment.family.feeds(images, True))
        found = results_of(deployment.family.name, backend.metadata, outputs, {})
    expected = deployment.family.reference(deployment.model).results(images, True)
    rows = [match_detections('image', *pair) for pair in zip(expected, found, strict=True)]
    assert all(row.passed for row in rows), rows
    assert sum(row.matched for row in rows) >= 50 * batch


def test_the_file_says_what_it_is(r50):
    deployment, path, _ = r50
    metadata = read_metadata(path)
    assert (metadata.family, metadata.form, len(metadata.classes)) == ('dense', 'full', 80)
    assert metadata.classes[0] == 'person'
    assert metadata.preprocess == deployment.rule
    assert json.loads(json.dumps(metadata.postprocess))['nms_pre'] == 1000
    assert Path(path).stat().st_size < 135e6
