"""The trained toys of this distribution: exported, proven, drawn, evaluated as DOTA is, in fp16 and INT8."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from marking import in_suite
from mm2onnx_mmrotate import synthetic
from mm2onnx_mmrotate.detections import corners_of
from mmdeploy_ext.cli import export_app, quantize_app, run_app, verify_app

pytestmark = pytest.mark.timeout(1200)
PROJECT = Path(__file__).resolve().parents[1]
REPOSITORY = PROJECT.parents[1]
TOYS = in_suite(['rotated_retinanet', 'oriented_rcnn'], 'rotated_retinanet')
VAL_IMAGES = 12


def config(toy, engine=''):
    return str(PROJECT / f'configs/{toy}_toy{engine}.py')


def checkpoint(toy):
    return str(PROJECT / f'checkpoints/{toy}_toy.pth')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Return a small generated set, and the overrides of a config that name it."""
    root = tmp_path_factory.mktemp('data') / 'toy_dota'
    synthetic.ensure_toy_dota(root, train_images=1, val_images=VAL_IMAGES)
    test = f'data.test.ann_file={root}/val/annfiles/', f'data.test.img_prefix={root}/val/images/'
    return root, [*test, 'data.workers_per_gpu=0']


@pytest.fixture(scope='module', params=TOYS)
def toy(request):
    return request.param


@pytest.fixture(scope='module')
def exported(toy, tmp_path_factory):
    """Return the file of a toy with its results, and the verdict of the export."""
    folder = tmp_path_factory.mktemp(toy)
    words = [config(toy), checkpoint(toy), '--output-file', folder / 'full.onnx']
    status = export_app.main([*map(str, words), '--verify', '--json', str(folder / 'verdict.json')])
    return status, folder / 'full.onnx', json.loads((folder / 'verdict.json').read_text())


def test_a_trained_toy_is_proven_with_turned_boxes(exported):
    status, _, verdict = exported
    assert (status, verdict['verdict']) == (0, 'proven')
    assert verdict['subject']['task'] == 'mm2onnx_mmrotate.task'


def test_its_boxes_are_drawn_and_written_with_their_corners(exported, data, tmp_path):
    _, file, _ = exported
    picture = next((data[0] / 'val/images').glob('*.png'))
    words = [file, picture, '--out', tmp_path / 'boxes.png', '--json', tmp_path / 'boxes.json']
    assert run_app.main([*map(str, words)]) == 0
    (image,) = json.loads((tmp_path / 'boxes.json').read_text())['images']
    boxes = np.array([entry['bbox_cxcywha'] for entry in image['detections']])
    corners = np.array([entry['corners_xy'] for entry in image['detections']])
    assert len(boxes) and (tmp_path / 'boxes.png').is_file()
    np.testing.assert_allclose(corners_of(boxes), corners, atol=5e-3)


@pytest.mark.parametrize(
    'words', [['boxes.jpg'], ['boxes.png', '--seed', '-1'], ['boxes.png', '--val-images', '0']]
)
def test_a_picture_that_cannot_be_made_ends_with_the_status_of_usage(words, tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        synthetic.main(['--picture', str(tmp_path / words[0]), *words[1:]])
    assert 'expected' in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', TOYS)
def test_both_engines_have_the_same_map(name, data, tmp_path):
    """Run what tools/dist_test_pth.sh and tools/dist_test_onnx.sh run.

    The evaluator starts processes, which import the script: in this process they would import pytest.
    """
    _, overrides = data
    words = [checkpoint(name), '--eval', 'mAP', '--work-dir', str(tmp_path), '--cfg-options', *overrides]
    for engine in ('_pth', '_onnx'):
        command = [sys.executable, REPOSITORY / 'tools/test.py', config(name, engine), *words]
        subprocess.run(list(map(str, command)), check=True, timeout=900)
    results = [json.loads((tmp_path / f'metrics_{engine}.json').read_text()) for engine in ('pth', 'onnx')]
    assert results[0]['metrics'] == pytest.approx(results[1]['metrics'], abs=1e-6)
    assert results[0]['metrics']['mAP'] > 0.2


@pytest.mark.matrix
def test_a_half_file_is_within_its_bars(toy, tmp_path):
    words = [config(toy), checkpoint(toy), '--output-file', str(tmp_path / 'half.onnx')]
    assert export_app.main([*words, '--precision', 'fp16', '--verify']) == 0


@pytest.mark.matrix
def test_an_int8_file_is_within_its_bars_on_pictures_like_those_of_the_training(
    toy, exported, data, tmp_path
):
    _, file, _ = exported
    pictures = sorted((data[0] / 'val/images').glob('*.png'))
    words = [file, '--calibrate', data[0] / 'val/images', '--output', tmp_path / 'int8.onnx', '--rounds', 0]
    assert quantize_app.main([*map(str, words)]) == 0
    words = [config(toy), checkpoint(toy), tmp_path / 'int8.onnx', '--images', *pictures[:4]]
    assert verify_app.main([*map(str, words)]) == 0
