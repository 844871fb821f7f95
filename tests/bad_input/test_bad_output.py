"""Outputs that cannot be written: read-only folders, a full disk, an export that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import check_writable

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED_WHILE_WRITING = """
import os, runpy, signal, sys, threading, time

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_when_begun(part):
    while not os.path.exists(part) or not os.path.getsize(part):
        time.sleep(0)
    kill()

def watch(event, arguments):
    if event == 'open' and str(arguments[0]).endswith('.part') and 'w' in str(arguments[1]):
        threading.Thread(target=kill_when_begun, args=[str(arguments[0])]).start()
    if event == 'os.rename' and str(arguments[0]).endswith('.part'):  # Python renames what it compiles, too
        kill()  # at the latest: the file is there, not yet under its name

sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('target', ['/proc/none/m.onnx', '/proc/m.onnx', '{folder}/out/notes.txt/m.onnx'])
@pytest.mark.parametrize(
    ('tool', 'option'),
    [
        ('export', '--output-file {}'),
        ('export', '--json {}'),
        ('verify', '--report {}'),
        ('run', '--out {}'),
        ('test', '--work-dir {}'),
        ('test', '--out {}.pkl'),
    ],
)
def test_a_folder_that_takes_no_file_is_refused_before_the_weights_load(tool, option, target, bench):
    bench.data()
    target = target.format(folder=bench.folder)
    reason = 'is a file, not a folder' if 'notes' in target else 'cannot be written'
    bench.refuses(tool, target, reason, more=option.format(target))


def test_a_folder_or_a_pipe_in_place_of_the_file_is_refused(bench):
    bench.refuses('export', f'{bench.out}: is a folder; give the name of a file', output=bench.out)
    os.mkfifo(bench.folder / 'pipe')
    bench.refuses('export', 'pipe: is a device or pipe', output=bench.folder / 'pipe')
    bench.refuses('export', '/dev/null: is a device or pipe', output='/dev/null')


def test_a_folder_without_permission_is_refused(public_folder, without_privileges):
    (public_folder / 'out').mkdir(mode=0o555)
    with without_privileges(), pytest.raises(UsageError, match=r'\(Permission'):
        check_writable(public_folder / 'out/m.onnx')
    assert not list((public_folder / 'out').iterdir())


@pytest.mark.parametrize('tool', ['export', 'run'])
def test_a_full_disk_is_one_line_and_leaves_the_folder_as_it_was(tool, bench):
    limit = dict(export=1 << 20, run=20_000)[tool]
    bench.refuses(
        tool,
        f'{bench.out}/',
        'could not be written (File too large)',
        'free some space',
        status=1,
        limit=limit,
    )


@pytest.mark.matrix
def test_a_full_disk_leaves_no_half_report(bench):
    done = bench.call('verify', limit=100_000)
    assert done.status == 1 and done.err.count('\n') == 1
    assert done.err.startswith(f'error: {bench.out}/report.html: could not be written (File too large)')
    assert {path.name for path in bench.out.iterdir()} <= {'m.onnx', 'notes.txt', 'verdict.json'}


@pytest.mark.matrix
def test_a_killed_export_leaves_no_half_file_and_the_next_one_clears_up(bench):
    words = bench.arguments('export', dict(more='--shape 128'))
    tool = REPOSITORY / 'tools/deployment/pytorch2onnx.py'
    # a fork of this process may wait forever: threads of other tests had locks when it was made
    killed = subprocess.run(
        [sys.executable, '-c', KILLED_WHILE_WRITING, tool, *map(str, words)],
        cwd=bench.folder, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-500:]
    assert (bench.out / 'm.onnx').read_bytes() == b'an earlier export'
    leftovers = [path.name for path in bench.out.iterdir() if path.name.endswith('.part')]
    assert len(leftovers) == 1 and leftovers[0].startswith('.m.onnx.')
    again = bench.call('export', more='--shape 128')
    assert (again.status, again.err) == (0, '')
    assert sorted(path.name for path in bench.out.iterdir()) == ['m.onnx', 'notes.txt']
    onnx.checker.check_model(onnx.load(bench.out / 'm.onnx'))
