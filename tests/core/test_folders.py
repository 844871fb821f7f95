"""A folder is the old one or the new one, as a whole."""

import os
import signal
import subprocess
import sys

import pytest

from mmdeploy_ext.core import cli, folders
from mmdeploy_ext.core.errors import UsageError

OLD, NEW = ({f'{name}.onnx': f'{kind} {name}' for name in 'ab'} for kind in ('old', 'new'))
OLD |= {'c.onnx': 'old c'}
OUTDATED = ('a.onnx', 'b.onnx', 'c.onnx')
OTHERS = {'notes.txt': 'notes', 'proof/report.html': 'report', 'proof/inputs/x.bin': 'x'}


def content(folder):
    """Return the files of a folder by their path in it."""
    found = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def replace(target, files):
    with folders.replaced_folder(target, OUTDATED) as new:
        write(new, files)


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / 'work/graphs'
    write(folder, OLD | OTHERS)
    return folder


def test_what_is_no_part_of_the_old_export_stays(target):
    (target / 'link').symlink_to('notes.txt')
    replace(target, NEW)
    assert content(target) == NEW | OTHERS | {'link': 'notes'} and (target / 'link').is_symlink()
    assert os.listdir(target.parent) == ['graphs']


@pytest.mark.parametrize('failure', [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(target, failure):
    with pytest.raises(failure), folders.replaced_folder(target) as new:
        write(new, NEW)
        raise failure
    assert content(target) == OLD | OTHERS and os.listdir(target.parent) == ['graphs']


KILLED = """
import os, pathlib, signal, sys
from mmdeploy_ext.core import folders
rename, calls = pathlib.Path.rename, []
def dying_rename(path, target):
    calls.append(path)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
pathlib.Path.rename = dying_rename
with folders.replaced_folder(sys.argv[1], ('a.onnx', 'b.onnx', 'c.onnx')) as new:
    for name in 'ab':
        (new / f'{name}.onnx').write_text(f'new {name}')
"""


@pytest.mark.parametrize(('rename', 'expected'), [(2, OLD), (3, NEW), (4, NEW)])
def test_the_next_command_restores_what_a_killed_one_moved_aside(target, rename, expected, capsys):
    killed = subprocess.run([sys.executable, '-c', KILLED, str(target), str(rename)], check=False)
    assert killed.returncode == -signal.SIGKILL and content(target) != expected | OTHERS
    parser = cli.ArgumentParser()
    parser.add_argument('file')
    assert cli.run(lambda args: 0, parser, [str(target / 'a.onnx')]) == 0
    assert content(target) == expected | OTHERS and os.listdir(target.parent) == ['graphs']
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['read-only', 'link'])
def test_a_file_of_a_folder_that_is_protected_or_elsewhere_is_not_replaced(target, kind):
    protected = target / 'a.onnx'
    if kind == 'link':
        protected.rename(target.parent / 'a.onnx')
        protected.symlink_to('../a.onnx')
    else:
        protected.chmod(0o444)
    before = content(target)
    with pytest.raises(UsageError, match=r'graphs/a\.onnx'), folders.replaced_folder(target) as new:
        write(new, NEW)
    assert content(target) == before and protected.is_symlink() == (kind == 'link')


def test_files_of_a_folder_keep_their_permissions(target):
    for name, mode in (('a.onnx', 0o600), ('b.onnx', 0o640)):
        (target / name).chmod(mode)
    replace(target, NEW)
    assert [(target / name).stat().st_mode & 0o777 for name in NEW] == [0o600, 0o640]
