"""The files of a folder are replaced together, and files of others are not touched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest

from mmdeploy_ext.base import cli, files
from mmdeploy_ext.base.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.runtime.exported import files_of_family

OLD, NEW = ({f'{name}.onnx': f'{kind} {name}' for name in 'ab'} for kind in ('old', 'new'))
OLD |= {'c.onnx': 'old c'}
OUTDATED = ('a.onnx', 'b.onnx', 'c.onnx')
OTHERS = {'notes.txt': 'notes', 'proof/report.html': 'report', 'proof/inputs/x.bin': 'x'}


def content(folder):
    """Return the files of a folder by their path in it."""
    found = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def write(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def replace(target, texts):
    with files.replaced_folder(target, OUTDATED) as new:
        write(new, texts)


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
    with pytest.raises(failure), files.replaced_folder(target) as new:
        write(new, NEW)
        raise failure
    assert content(target) == OLD | OTHERS and os.listdir(target.parent) == ['graphs']


KILLED = """
import os, pathlib, signal, sys
from mmdeploy_ext.base import files
replace, calls = pathlib.Path.replace, []
def dying_replace(path, target):
    calls.append(path)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
pathlib.Path.replace = dying_replace
with files.replaced_folder(sys.argv[1], ('a.onnx', 'b.onnx', 'c.onnx')) as new:
    for name in 'ab':
        (new / f'{name}.onnx').write_text(f'new {name}')
"""


def test_a_killed_command_leaves_whole_files_and_the_next_one_replaces_them(target):
    killed = subprocess.run([sys.executable, '-c', KILLED, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert content(target) == OLD | OTHERS | {'a.onnx': 'new a'}
    replace(target, NEW)
    assert content(target) == NEW | OTHERS


def test_an_interrupt_between_two_moves_leaves_the_new_folder(target, monkeypatch):
    moves, move = [], Path.replace

    def interrupted(path, place):
        moves.append(move(path, place))
        if len(moves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(target, NEW)
    assert content(target) == NEW | OTHERS and os.listdir(target.parent) == ['graphs']


def test_a_hidden_folder_beside_an_input_or_output_is_never_believed(target):
    (target.parent / 'home').mkdir()
    write(target.parent, {'home/.bashrc': 'mine', 'victim': 'mine'})
    kinds = dict(up=['../../victim'], absolute=[str(target.parent / 'victim')], link=['.bashrc'], none=None)
    for kind, names in kinds.items():
        for place, name in ((target.parent, 'graphs'), (target, 'a.onnx'), (target.parent, 'victim')):
            hidden = place / f'.{name}.{kind}.part'
            write(hidden, {'whole/notes.txt': 'evil', 'whole/victim': 'evil'})
            if kind == 'link':
                (hidden / 'old').symlink_to(target.parent / 'home')
            else:
                write(hidden, {'old/victim': 'evil'})
            if names is not None:
                (hidden / 'kept.json').write_text(json.dumps(names))
    before = content(target.parent)
    parser = cli.ArgumentParser()
    parser.add_argument('files', nargs='+')
    words = [str(path) for path in (target, target / 'a.onnx', target.parent / 'victim')]
    assert cli.run(lambda args: 0, parser, words) == 0
    assert content(target.parent) == before
    replace(target, {'a.onnx': 'new'})
    outdated = {f'graphs/{name}' for name in OUTDATED}
    expected = {name: text for name, text in before.items() if name not in outdated}
    assert content(target.parent) == expected | {'graphs/a.onnx': 'new'}


def test_two_commands_move_their_files_one_after_the_other(target, monkeypatch):
    writer = threading.Thread(target=replace, args=(target, NEW))
    with files.locked(target):
        writer.start()
        writer.join(0.2)
        assert content(target) == OLD | OTHERS
        monkeypatch.setattr(files, 'LONGEST_WAIT_S', 0)
        with pytest.raises(Mm2OnnxError, match=str(target)):
            replace(target, {'a.onnx': 'of a third'})
        assert content(target) == OLD | OTHERS
        monkeypatch.undo()
    writer.join()
    assert content(target) == NEW | OTHERS and os.listdir(target.parent) == ['graphs']


def test_only_graphs_and_their_own_data_are_outdated(target):
    model = onnx.helper.make_model(onnx.helper.make_graph([], 'graph', [], []))
    model.metadata_props.add(key='mm2onnx.family', value='"x"')
    for place in ('a.onnx.data', 'notes.txt', '../victim', str(target.parent / 'victim')):
        entry = model.graph.initializer.add(data_location=onnx.TensorProto.EXTERNAL).external_data.add()
        entry.key, entry.value = 'location', place
    (target / 'a.onnx').write_bytes(model.SerializeToString())
    assert files_of_family(target, 'x') == {'a.onnx', 'a.onnx.data'}


def test_a_new_file_takes_no_place_of_a_folder_and_goes_through_no_link(target):
    (target / 'link').symlink_to(target.parent)
    for name in ('proof', 'link/x', 'notes.txt/x'):
        with pytest.raises(UsageError, match=name.partition('/')[0]):
            replace(target, NEW | {name: 'new'})
    assert content(target) == OLD | OTHERS


def test_a_folder_that_another_program_removes_is_no_full_disk(target):
    with pytest.raises(Mm2OnnxError) as caught, files.replaced_folder(target) as new:
        shutil.rmtree(target.parent)
        (new / 'a.onnx').write_text('new')
    assert 'space' not in str(caught.value)


@pytest.mark.parametrize('kind', ['read-only', 'link'])
def test_a_file_of_a_folder_that_is_protected_or_elsewhere_is_not_replaced(target, kind):
    protected = target / 'a.onnx'
    if kind == 'link':
        protected.rename(target.parent / 'a.onnx')
        protected.symlink_to('../a.onnx')
    else:
        protected.chmod(0o444)
    before = content(target)
    with pytest.raises(UsageError, match=r'graphs/a\.onnx'), files.replaced_folder(target) as new:
        write(new, NEW)
    assert content(target) == before and protected.is_symlink() == (kind == 'link')


def test_files_of_a_folder_keep_their_permissions(target):
    for name, mode in (('a.onnx', 0o600), ('b.onnx', 0o640)):
        (target / name).chmod(mode)
    replace(target, NEW)
    assert [(target / name).stat().st_mode & 0o777 for name in NEW] == [0o600, 0o640]
