"""ONNX Runtime writes no identifier and sends nothing: in the package, and in programs that it hands out."""

import os
import subprocess
import sys

import pytest

SESSION = "\nimport onnxruntime; onnxruntime.InferenceSession('demo/atss_toy.onnx')"
RUN = 'import runpy; runpy.run_path({!r})'


@pytest.mark.parametrize(
    'first',
    [
        'import mmdeploy_ext',
        RUN.format('mmdeploy_ext/bench/kit/runners/run_onnxruntime.py'),
        RUN.format('mmdeploy_ext/graphs/reduce/run.py'),
    ],
)
def test_a_session_writes_nothing_into_the_home_folder(tmp_path, first):
    environment = {key: value for key, value in os.environ.items() if key != 'ORT_DISABLE_TELEMETRY'}
    environment |= dict(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / 'cache'))
    subprocess.run([sys.executable, '-c', first + SESSION], env=environment, check=True)
    assert not list(tmp_path.rglob('*onnxruntime*'))


def test_a_setting_of_the_environment_stays():
    program = "import mmdeploy_ext, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, 'ORT_DISABLE_TELEMETRY': '0'}
    assert subprocess.check_output([sys.executable, '-c', program], env=environment) == b'0\n'
