"""The wheel beside PyTorch and OpenMMLab: it exports and proves from folders that are no checkout."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

import installed_wheel
import toy_nuscenes

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1500)]
OUTSIDE = Path(__file__).resolve().parents[1] / 'families/outside_package'
SSD = 'ssd/ssdlite_mobilenetv2_scratch_600e_coco.py'
"""YOLOX's best class is one of two with equal scores in an image, with these weights."""
REPOSITORY = Path(__file__).resolve().parents[2]
STREAM = REPOSITORY / 'projects/configs/StreamPETR/stream_petr_toy.py'
DRIVING = REPOSITORY / 'projects/driving'
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


def test_the_first_command_is_proven_and_drawn(installed, tmp_path):
    installed.folder = tmp_path
    done = installed('demo')
    assert (done.returncode, '\nPROVEN ' in done.stdout) == (0, True), done.stdout + done.stderr
    assert {path.name for path in (tmp_path / 'mm2onnx_demo').iterdir()} == {
        'atss_toy.onnx',
        'detections.jpg',
    }


@pytest.mark.parametrize(
    ('library', 'config', 'output', 'with_projects'),
    [('mmdet', SSD, 'm.onnx', False), ('mmdet', SSD, 'm.onnx', True), ('mmdet3d', PILLARS, 'm', True)],
)
def test_a_config_of_an_installed_library_is_proven_in_a_folder_of_the_user(
    installed, library, config, output, with_projects, tmp_path
):
    installed.folder = tmp_path
    if with_projects:
        (tmp_path / 'projects').mkdir()
        (tmp_path / 'projects/__init__.py').touch()
    path = config_of(library, config)
    assert installed('synthetic', 'weights', path, 'seeded.pth').returncode == 0
    assert verdict_of(installed, path, 'seeded.pth', '--output-file', output)['verdict'] == 'proven'
    assert installed('info', output).returncode == 0


def test_a_package_with_a_family_is_exported_with(installed, tmp_path):
    """`mm2onnx export` and `mm2onnx run` as on the page."""
    installed.folder = tmp_path / 'folder'
    installed.folder.mkdir()
    installed_wheel.install_source(installed, OUTSIDE, tmp_path)
    shutil.copy(OUTSIDE / 'config.py', installed.folder)
    assert installed('synthetic', 'weights', 'config.py', 'gauges.pth').returncode == 0
    verdict = verdict_of(installed, 'config.py', 'gauges.pth', '--output-file', 'gauges.onnx')
    assert (verdict['verdict'], verdict['subject']['task']) == ('proven', 'bbox2d')
    picture = REPOSITORY / 'demo/toy.jpg'
    done = installed('run', 'gauges.onnx', picture, '--out', 'gauges.png')
    assert (done.returncode, (installed.folder / 'gauges.png').is_file()) == (0, True), done.stderr


@pytest.fixture(scope='module')
def stream(installed, tmp_path_factory):
    """Return the refused export of StreamPETR's toy, the verdict with mm2onnx-driving, and the folder."""
    folder = installed.folder = tmp_path_factory.mktemp('folder')
    words = STREAM, REPOSITORY / 'demo/checkpoints/stream_petr_toy.pth', '--output-file', 'stream'
    refused = installed('export', *words)
    installed_wheel.install_source(installed, DRIVING, tmp_path_factory.mktemp('driving'))
    return refused, verdict_of(installed, *words), folder / 'stream'


def test_a_driving_system_is_exported_with_the_wheel_that_the_refusal_names(stream):
    refused, verdict, _ = stream
    assert refused.returncode == 2 and 'pip install mm2onnx-driving' in refused.stderr
    assert verdict['verdict'] == 'proven'


def test_a_drive_runs_with_two_wheels_and_onnxruntime(stream, tmp_path):
    root = toy_nuscenes.write(tmp_path, val_scenes=1, frames=2)
    device = installed_wheel.Command(tmp_path)
    refused = device('run', stream[-1], root / toy_nuscenes.INFOS, '--json', 'found.json')
    assert refused.returncode == 2 and 'pip install mm2onnx-driving' in refused.stderr
    installed_wheel.install_source(device, DRIVING, tmp_path)
    assert not (device.site / 'torch').exists() and not (device.site / 'mmcv').exists()
    words = 'run', stream[-1], root / toy_nuscenes.INFOS, '--data-root', root, '--json', 'found.json'
    done = device(*words, '--out', 'drawn')
    assert done.returncode == 0, done.stderr
    assert len(json.loads((device.folder / 'found.json').read_text())['frames']) == 2
