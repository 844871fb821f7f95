"""`lint.py`: what it finds in models of this project and in one with a planted pitfall; exit statuses."""

import json
import shutil
from pathlib import Path

import pytest

from mmdeploy_ext.cli.lint_app import main

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPOSITORY / 'demo/checkpoints/atss_toy.pth')
BACKBONE = '''
from mmdet.models import BACKBONES, ResNet


@BACKBONES.register_module()
class BrightnessResNet(ResNet):
    """Scales its maps by the brightest pixel, as a number; and remembers it."""

    def forward(self, x):
        brightest = x.abs().max().item()
        self.brightest = x.mean()
        return tuple(level / brightest for level in super().forward(x))
'''


def lint(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    """Return a config whose backbone, in a file of the user's, has a pitfall."""
    folder = tmp_path_factory.mktemp('planted')
    (folder / 'brightness_resnet.py').write_text(BACKBONE)
    base = shutil.copytree(REPOSITORY / 'configs', folder / 'configs') / 'demo' / 'atss_toy.py'
    config = base.with_name('planted.py')
    config.write_text(
        "_base_ = ['./atss_toy.py']\n"
        "custom_imports = dict(imports=['brightness_resnet'], allow_failed_imports=False)\n"
        "model = dict(backbone=dict(type='BrightnessResNet'))\n"
    )
    return folder, str(config)


def test_a_planted_trap_is_named_by_file_and_line(planted, tmp_path, capsys, monkeypatch):
    folder, config = planted
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    target = tmp_path / 'found.json'
    assert lint(config, CHECKPOINT, '--shape', 128, '--no-export', '--json', target) == 1
    out = capsys.readouterr().out
    assert 'error value-to-python brightness_resnet.py:10' in out
    findings = json.loads(target.read_text())['reports'][0]['findings']
    lines = {(finding['rule'], finding['file'], finding['line']) for finding in findings}
    assert lines == {
        ('value-to-python', 'brightness_resnet.py', 10),
        ('state-written', 'brightness_resnet.py', 11),
    }
    assert findings[0]['outcomes'] == dict(torchscript='wrong on other inputs', dynamo='right')
    assert 'input' in findings[0]['details'][0]
