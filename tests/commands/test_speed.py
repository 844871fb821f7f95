"""Commands start without the libraries that they do not need."""

import subprocess
import sys

import pytest

from refusals import MODEL, PICTURE, REPOSITORY

CODE = """
import sys
from mmdeploy_ext.cli import command
try:
    status = command.main(sys.argv[1:])
except SystemExit as end:
    status = end.code
assert not status and not {forbidden!r} & set(sys.modules), {forbidden!r} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ('words', 'forbidden'),
    [
        (['--help'], {'torch', 'onnx', 'numpy', 'cv2', 'onnxruntime', 'mmcv'}),
        (['export', '--help'], {'torch', 'onnx', 'mmcv'}),
        (['run', '--help'], {'onnxruntime', 'cv2', 'torch'}),
        (['run', str(MODEL), str(PICTURE), '--out', 'x.jpg'], {'torch', 'mmcv', 'rich'}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(words, forbidden, tmp_path):
    code = CODE.replace('{forbidden!r}', repr(forbidden))
    environment = dict(PYTHONPATH=str(REPOSITORY), PATH='')
    done = subprocess.run(
        [sys.executable, '-c', code, *words], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
