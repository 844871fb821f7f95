"""Commands start without the libraries that they do not need."""

import json
import subprocess
import sys

import pytest

from refusals import MODEL, PICTURE, REPOSITORY

CODE = """
import json, sys
from mmdeploy_ext.cli import command
for words, forbidden in json.loads(sys.argv[1]):
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    imported = sorted(set(forbidden) & set(sys.modules))
    assert not status and not imported, (words, status, imported)
"""
HELPS = [
    (['--help'], ['torch', 'onnx', 'numpy', 'cv2', 'onnxruntime', 'mmcv']),
    (['run', '--help'], ['onnxruntime', 'cv2', 'torch']),
    (['export', '--help'], ['torch', 'onnx', 'mmcv']),
]
"""Words, and what a process has not imported after them and those before."""
RUN = [(['run', str(MODEL), str(PICTURE), '--out', 'x.jpg'], ['torch', 'mmcv', 'rich'])]


@pytest.mark.parametrize('commands', [HELPS, RUN], ids=['helps', 'run'])
def test_a_command_imports_no_more_than_it_needs(commands, tmp_path):
    command = [sys.executable, '-c', CODE, json.dumps(commands)]
    environment = dict(PYTHONPATH=str(REPOSITORY), PATH='')
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
