"""A folder is the old one or the new one, as a whole."""

import os

import pytest

from mmdeploy_ext.core import folders

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
