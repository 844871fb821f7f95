"""The page of a kit runs its inputs in a browser, and says what `mm2onnx judge` says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from browser_pages import (
    address_of,
    change_manifest,
    in_page,
    needs_library,
    opened_browser,
    run_page,
)
from mmdeploy_ext.bench.kit.page import VERSION
from mmdeploy_ext.cli import export_app, kit_app
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.runtime.detect import detect
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.runtime.tasks import bbox2d
from toy_atss import CHECKPOINT, CONFIG, export_toy, load_toy

pytestmark = pytest.mark.matrix
CASES = 3
"""Of the kit that most tests use."""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    needs_library()
    with opened_browser(tmp_path_factory.mktemp('profile')) as browser:
        yield browser


@pytest.fixture(scope='module')
def kit(atss, tmp_path_factory):
    """The kit of the ATSS toy with its first inputs and a batch."""
    folder = Path(shutil.copytree(atss[0], tmp_path_factory.mktemp('page') / 'kit'))

    def few(manifest):
        batch = next(case for case in manifest['cases'] if case['inputs']['input']['shape'][0] > 1)
        manifest.update(cases=[*manifest['cases'][: CASES - 1], batch])

    change_manifest(folder, few)
    return folder


@pytest.fixture(scope='module')
def page(browser, kit):
    """The browser with the page of the kit."""
    with address_of(kit) as address:
        browser.open(address)
        yield browser


def test_a_browser_gives_pytorchs_results_and_asks_nobody_else(browser, kit):
    with address_of(kit) as address:
        verdict, failures, detail = run_page(browser, address)
    assert verdict == f'EQUAL ON {CASES} INPUTS', failures
    assert f'onnxruntime-web {VERSION}, WebAssembly' in detail and not browser.problems
    elsewhere = [
        request for request in browser.requests if not request.startswith((address, 'data:', 'blob:'))
    ]
    assert not elsewhere


def test_a_browser_runs_a_file_of_pixels_with_plain_inputs_and_counted_outputs(browser, tmp_path):
    hosts = dict(input='uint8-nhwc', channels='rgb', required_inputs=True, outputs='efficient-nms')
    path, kit = export_toy(load_toy(), tmp_path / 'hosts.onnx', **hosts), tmp_path / 'kit'
    assert kit_app.main([path, CONFIG, CHECKPOINT, '--out', str(kit)]) == 0
    change_manifest(kit, lambda manifest: manifest.update(cases=manifest['cases'][:1]))
    with address_of(kit) as address:
        verdict, failures, _ = run_page(browser, address)
    assert verdict.startswith('EQUAL ON '), failures
    assert not browser.problems


def test_a_picture_has_the_detections_that_python_finds(page):
    pixels = read_image('demo/toy.jpg')
    body = """
        const [{ Kit }, { Engine }, { detect }] = await Promise.all(
            ['kit', 'engine', 'picture'].map((name) => import(`kit/${name}.js`)));
        const kit = await Kit.open();
        const [height, width] = pixels.shape;
        const engine = await Engine.open(kit, 'wasm');
        return detect(engine, { height, width, values: pixels.values }, kit.metadata);
    """
    answer = in_page(page, body, pixels=pixels)
    labels = np.asarray(answer['labels'], np.int64)
    results = Detections(answer['boxes'].reshape(-1, 4), answer['scores'], labels)
    with build_backend('OnnxRuntimeBackend', 'demo/atss_toy.onnx') as backend:
        row = bbox2d.match_detections('toy', detect(backend, pixels), results)
    assert row.passed and row.matched > 20, row


# --- other models -----------------------------------------------------------------------------------------

MODELS = dict(yolox=(), mask_rcnn=(), solov2=(), panoptic_fpn=(), atss=('--postprocess', 'raw'))


@pytest.mark.parametrize('name', MODELS)
def test_other_models_are_equal_in_a_browser(browser, tmp_path, name):
    model = (f'configs/demo/{name}_toy.py', f'demo/checkpoints/{name}_toy.pth')
    file, folder = str(tmp_path / 'model.onnx'), tmp_path / 'kit'
    assert export_app.main([*model, '--output-file', file, *MODELS[name]]) == 0
    assert kit_app.main([file, *model, '--out', str(folder)]) == 0
    with address_of(folder) as address:
        verdict, failures, _ = run_page(browser, address)
    claim = 'TENSORS EQUAL' if MODELS[name] else 'EQUAL'
    assert verdict.startswith(f'{claim} ON '), failures
    assert not browser.problems
