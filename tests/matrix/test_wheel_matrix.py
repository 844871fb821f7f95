"""The wheel beside PyTorch and OpenMMLab: it exports and proves from folders that are no checkout."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

import installed_wheel

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1500)]
OUTSIDE = Path(__file__).resolve().parents[1] / 'outside_package'
YOLOX = 'yolox/yolox_tiny_8x8_300e_coco.py'
PILLARS = 'pointpillars/hv_pointpillars_secfpn_6x8_160e_kitti-3d-car.py'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    command = installed_wheel.Command(tmp_path_factory.mktemp('wheel'))
    installed_wheel.add_stack(command)
    return command


def config_of(library, name):
    return Path(importlib.util.find_spec(library).origin).parent / '.mim/configs' / name


def verdict_of(command, *words):
    """Export and prove; return the verdict."""
    done = command('export', *words, '--verify', '--json', 'verdict.json')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '\nPROVEN ' in done.stdout
    return json.loads((command.folder / 'verdict.json').read_text())


@pytest.mark.parametrize(
    ('library', 'config', 'output', 'with_projects'),
    [('mmdet', YOLOX, 'm.onnx', False), ('mmdet', YOLOX, 'm.onnx', True), ('mmdet3d', PILLARS, 'm', True)],
)
def test_a_config_of_an_installed_library_is_proven_in_a_folder_of_the_user(
    installed, library, config, output, with_projects, tmp_path
):
    installed.folder = tmp_path
    if with_projects:
        (tmp_path / 'projects').mkdir()
        (tmp_path / 'projects/__init__.py').touch()
    path = config_of(library, config)
    assert installed('synthetic', 'seeded', path, 'seeded.pth').returncode == 0
    assert verdict_of(installed, path, 'seeded.pth', '--output-file', output)['verdict'] == 'proven'
    assert installed('info', output).returncode == 0


WEIGHTS = """
import torch
from mmdeploy_ext import compat
compat.apply()
from circles.model import CircleNet
torch.manual_seed(1)
model = CircleNet(3, 20)
model.heat.weight.data *= 20
model.radius.bias.data += 2
torch.save(dict(state_dict=model.state_dict()), 'circles.pth')
"""


def test_a_package_with_a_family_is_exported_with(installed, tmp_path):
    """`mm2onnx export` and `mm2onnx run` as on the page."""
    installed.folder = tmp_path / 'folder'
    installed.folder.mkdir()
    installed_wheel.install_source(installed, OUTSIDE, tmp_path)
    text = (OUTSIDE / 'config.py').read_text().replace("['circles', 'circles.model']", "['circles.model']")
    (installed.folder / 'config.py').write_text(text)
    python = installed.site.parents[2] / 'bin/python'
    subprocess.run([python, '-c', WEIGHTS], cwd=installed.folder, env=installed.env, check=True)
    words = ('config.py', 'circles.pth', '--output-file', 'circles.onnx', '--radius', 'log')
    verdict = verdict_of(installed, *words)
    assert (verdict['verdict'], verdict['subject']['task']) == ('proven', 'circles.task')
    picture = Path(__file__).resolve().parents[2] / 'demo/toy.jpg'
    done = installed('run', 'circles.onnx', picture, '--out', 'circles.png')
    assert (done.returncode, (installed.folder / 'circles.png').is_file()) == (0, True), done.stderr
