"""Both wheels in a fresh environment: a config of mmrotate is exported, proven and run in an empty folder."""

import importlib.util
import json
from pathlib import Path

import pytest

import installed_wheel

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1500)]
PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT.parents[1] / 'demo/toy.jpg'
CONFIG = 'rotated_retinanet/rotated_retinanet_obb_r50_fpn_1x_dota_le90.py'


def folder_of(library):
    """Return the folder that a library was imported from."""
    return Path(importlib.util.find_spec(library).origin).parent


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Return `mm2onnx` of an environment that has both wheels, mmrotate, and PyTorch and mmdet from here."""
    folder = tmp_path_factory.mktemp('wheels')
    command = installed_wheel.Command(folder)
    for distribution in ('mmrotate', 'e2cnn'):
        installed_wheel.link_distribution(distribution, command.site)
    (command.site / 'stack.pth').write_text(f'{folder_of("torch").parent}\n')
    installed_wheel.install_source(command, PROJECT, folder)
    return command


def test_a_config_of_mmrotate_is_proven_in_an_empty_folder(installed, tmp_path):
    installed.folder = tmp_path
    config = folder_of('mmrotate') / '.mim/configs' / CONFIG
    done = installed('synthetic', 'weights', config, 'seeded.pth')
    assert done.returncode == 0, done.stderr
    words = ('export', config, 'seeded.pth', '--shape', 128, 128, '--output-file', 'rotated.onnx', '--verify')
    done = installed(*words, '--json', 'verdict.json')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '\nPROVEN ' in done.stdout
    verdict = json.loads((tmp_path / 'verdict.json').read_text())
    assert (verdict['verdict'], verdict['subject']['task']) == ('proven', 'mm2onnx_mmrotate.task')
    (installed.site / 'stack.pth').unlink()  # the file runs without PyTorch
    done = installed('run', 'rotated.onnx', PICTURE, '--out', 'boxes.png', '--score-thr', 0)
    assert (done.returncode, (tmp_path / 'boxes.png').is_file()) == (0, True), done.stderr
