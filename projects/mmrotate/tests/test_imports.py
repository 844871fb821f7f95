"""What is said to run without PyTorch imports neither it nor mmrotate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

PACKAGES = ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmrotate')
BLOCKED = """
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in sys.argv[1].split(','):
            raise ModuleNotFoundError('blocked: ' + name, name=name)
sys.meta_path.insert(0, Blocker())
importlib.import_module(sys.argv[2])
"""


MODULES = (
    '',
    '.detections',
    '.runtime',
    '.dense.runtime',
    '.two_stage.runtime',
    '.task',
    '.synthetic',
)


@pytest.mark.parametrize('module', MODULES)
def test_it_imports_without_pytorch(module):
    command = [sys.executable, '-c', BLOCKED, ','.join(PACKAGES), f'mm2onnx_mmrotate{module}']
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (PROJECT, PROJECT.parents[1]))))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
