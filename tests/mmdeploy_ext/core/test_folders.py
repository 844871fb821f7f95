"""A folder is the old one or the new one, as a whole, whatever happens while it is replaced."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import killed_folders
from killed_folders import LATER, NEW, OLD, OTHERS, OUTDATED, content, replace, write
from mmdeploy_ext.core import folders
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.synthetic import staging

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / 'work/graphs'
    write(folder, OLD | OTHERS)
    return folder


@pytest.fixture(params=['exchanged', 'moved'])
def renames(request, monkeypatch):
    """Both ways in which a folder comes into its place."""
    if request.param == 'moved':
        monkeypatch.setattr(folders, 'exchange', lambda first, second: False)


def test_what_is_no_part_of_the_old_export_stays(target, renames):
    (target / 'link').symlink_to('notes.txt')
    before = os.stat(target / 'proof').st_ino
    replace(target, NEW)
    assert content(target) == NEW | OTHERS | {'link': 'notes'} and (target / 'link').is_symlink()
    assert os.stat(target / 'proof').st_ino == before  # who works in it still does
    assert os.listdir(target.parent) == ['graphs']


def test_a_new_folder_is_made_with_those_above_it(tmp_path):
    replace(tmp_path / 'a/b/graphs', NEW)
    assert content(tmp_path / 'a') == {f'b/graphs/{name}': text for name, text in NEW.items()}


@pytest.mark.parametrize(('name', 'reason'), [
    ('file', 'file: is a file'), ('file/a/b', 'file is a file'), ('full', 'full: is not empty'),
])  # fmt: skip
def test_a_new_folder_that_cannot_be_one_is_refused(tmp_path, name, reason):
    write(tmp_path, {'file': '', 'full/notes.txt': ''})
    with pytest.raises(UsageError, match=f'{reason}.*name a new folder'):
        folders.check_new_folder(tmp_path / name)
    folders.check_new_folder(tmp_path / 'a/b')


def test_a_failure_leaves_the_old_folder_and_nothing_else(target, renames):
    with pytest.raises(ZeroDivisionError), folders.replaced_folder(target) as new:
        write(new, NEW)
        raise ZeroDivisionError
    with pytest.raises(Mm2OnnxError, match='could not be written'), folders.replaced_folder(target) as new:
        raise OSError(28, 'No space left on device')
    assert content(target) == OLD | OTHERS and os.listdir(target.parent) == ['graphs']


@pytest.mark.parametrize('failure', [KeyboardInterrupt, PermissionError(13, 'Permission denied')])
@pytest.mark.parametrize('step', range(4))
def test_a_failure_or_ctrl_c_at_any_rename_loses_nothing(target, renames, monkeypatch, step, failure):
    write(target, {'extra/more.txt': 'more'})
    others = OTHERS | {'extra/more.txt': 'more'}
    calls, rename = iter(range(9)), Path.rename

    def failing(path, place):
        if next(calls) == step:
            raise failure
        return rename(path, place)

    monkeypatch.setattr(Path, 'rename', failing)
    with contextlib.suppress(KeyboardInterrupt, Mm2OnnxError):
        replace(target, NEW)
    found = content(target)
    assert found in (OLD | others, NEW | others) and os.listdir(target.parent) == ['graphs']


def test_a_folder_that_cannot_be_moved_is_left_beside_and_comes_back(target, renames, monkeypatch):
    rename = Path.rename

    def fixed(path, place):
        if path.name == 'proof':
            raise PermissionError(13, 'Permission denied')
        return rename(path, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'rename', fixed)
        with pytest.raises(Mm2OnnxError, match=r'proof: could not be moved into .*; move it yourself'):
            replace(target, NEW)
    replace(target, LATER)
    assert content(target) == LATER | OTHERS and os.listdir(target.parent) == ['graphs']


def test_an_outdated_folder_does_not_come_back_after_a_kill(target, monkeypatch):
    monkeypatch.setattr(folders, '_settle', lambda beside, folder: None)  # as if killed there
    with folders.replaced_folder(target, ['proof']) as new:
        write(new, NEW)
    monkeypatch.undo()
    replace(target, LATER)
    assert not (target / 'proof').exists()


def test_a_file_of_the_body_stays_where_names_differ_by_case_alone(target, monkeypatch):
    def taken(source, place, **options):
        raise FileExistsError(17, 'File exists')

    monkeypatch.setattr(os, 'link', taken)
    replace(target, NEW)
    assert (target / 'a.onnx').read_text() == 'new a' and not (target / 'notes.txt').exists()


def test_a_link_to_a_folder_stays_one(target):
    link = target.parent.parent / 'link'
    link.symlink_to(target)
    replace(link, NEW)
    assert link.is_symlink() and content(target) == NEW | OTHERS


def test_a_link_that_leads_back_to_itself_is_refused(tmp_path):
    link = tmp_path / 'link'
    link.symlink_to('link')
    for refuse in (folders.check_replaceable, lambda target: replace(target, NEW), staging.staging_folder):
        with pytest.raises(UsageError, match='link: is a link that leads back to itself'):
            refuse(link)
    assert link.is_symlink()


def test_a_process_that_is_killed_before_any_step_loses_nothing():
    script = [sys.executable, killed_folders.__file__]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for steps, faults in json.loads(done.stdout):
        assert steps > 15 and faults == {}


def test_two_processes_that_write_one_folder_come_one_after_the_other(target):
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with folders.replaced_folder(target, OUTDATED) as new:
            write(new, NEW)
            inside.set()
            assert go_on.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    second = folders.replaced_folder(target, OUTDATED, patience_s=0.2)
    with pytest.raises(UsageError, match='graphs: another process is writing this folder'):
        second.__enter__()
    assert content(target) == OLD | OTHERS
    go_on.set()
    replace(target, LATER)  # waits for the first
    thread.join()
    assert content(target) == LATER | OTHERS and os.listdir(target.parent) == ['graphs']


def test_folders_that_cannot_be_replaced_are_refused(target, monkeypatch):
    folders.check_replaceable(target)
    folders.check_replaceable(target.parent / 'new')
    with pytest.raises(UsageError, match=r'/proc/graphs'):
        folders.check_replaceable('/proc')
    monkeypatch.chdir(target)
    with pytest.raises(UsageError, match=r'^\.: is the working folder; .*: graphs'):
        folders.check_replaceable('.')
    monkeypatch.chdir(target / 'proof')
    folders.check_replaceable('..')
    monkeypatch.chdir('/')
    with pytest.raises(UsageError, match=r'^/: is '):
        folders.check_replaceable('/')


def test_a_file_and_folders_that_cannot_be_moved_are_refused_before_the_body_runs(target, monkeypatch):
    with pytest.raises(UsageError, match='is a file, expected a folder'):
        replace(target / 'notes.txt', NEW)
    for name in ('graphs', 'proof'):
        monkeypatch.setattr(os, 'access', lambda path, mode, name=name: Path(path).name != name)
        with pytest.raises(UsageError, match=f'{name}: .*cannot be written'):
            replace(target, NEW)
    assert content(target) == OLD | OTHERS and os.listdir(target.parent) == ['graphs']
