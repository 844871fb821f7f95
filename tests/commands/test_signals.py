"""A signal to a script that starts ranks ends the ranks, and nothing of the run goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RANK = """
import os, pathlib, time
folder = pathlib.Path(__file__).parent
print('rank', os.environ.get('RANK'), flush=True)
(folder / f'{os.getpid()}.part').touch()
(folder / f'{os.getpid()}.part').rename(folder / f'{os.getpid()}.pid')
time.sleep(600)
"""
SOON = 20
"""Seconds, of which a busy machine needs some."""


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def tools(tmp_path):
    """Return a folder of the scripts with ranks that only wait; whatever is left of them is ended."""
    shutil.copytree(REPO / 'tools', tmp_path / 'tools', ignore=lambda folder, names: set(names) - SCRIPTS)
    (tmp_path / 'tools/test.py').write_text(RANK)
    yield tmp_path / 'tools'
    for rank in ranks(tmp_path / 'tools'):
        if is_running(rank):
            os.kill(rank, signal.SIGKILL)


SCRIPTS = {'dist_run.sh', 'dist_test_pth.sh', 'dist_test_onnx.sh'}


def ranks(tools):
    return [int(path.stem) for path in tools.glob('*.pid')]


def start(tools, script, *words):
    """Start a script as a shell starts it in the foreground: with the signals as they are by default."""
    more = dict(PYTHON=sys.executable, OMP_NUM_THREADS='1')
    return subprocess.Popen(
        ['bash', str(tools / script), *words],
        env=dict(os.environ, **more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.matrix
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_distributed_script_ends_its_ranks(tools, number):
    process = start(tools, 'dist_test_pth.sh', 'config.py', 'checkpoint.pth', '2')
    assert until(lambda: len(ranks(tools)) == 2)
    process.send_signal(number)
    assert until(lambda: not any(map(is_running, ranks(tools))), SOON)
    error = process.communicate(timeout=SOON)[1]
    assert process.returncode == 128 + number
    assert error.splitlines()[-1] == f'error: the distributed run of config.py was ended by {number.name}'
