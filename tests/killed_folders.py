"""A folder that is replaced by a process that is killed before each step in turn; run as a script.

Prints, for renames that exchange and for those that do not, how many steps there were, and what was wrong.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from mmdeploy_ext.core import folders

STEPS = ('rename', 'replace', 'link', 'mkdir', 'unlink', 'rmdir')
OLD, NEW, LATER = ({f'{name}.onnx': f'{kind} {name}' for name in 'ab'} for kind in ('old', 'new', 'later'))
OLD |= {'c.onnx': 'old c', 'c.onnx.data': 'weights of c'}
OUTDATED = ('a.onnx', 'b.onnx', 'c.onnx', 'c.onnx.data')
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


def killed_before(step, target):
    """Replace a folder in a process that is killed before a step; return whether it came that far."""
    pid = os.fork()
    if pid == 0:
        left = [step]

        def counted(function):
            def called(*args, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*args, **options)

            return called

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        folders.exchange = counted(folders.exchange)
        replace(target, NEW)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def without_others(files):
    return {name: text for name, text in files.items() if name not in OTHERS}


def faults_of(target):
    """Yield what is wrong after a kill, and after the next process has replaced the folder."""
    if target.exists() and without_others(content(target)) not in (OLD, NEW):
        yield f'mixed: {content(target)}'
    if 'notes.txt' not in content(target if target.exists() else target.parent / '.') and target.exists():
        yield 'notes.txt is lost'
    with folders.replaced_folder(target, OUTDATED) as new:
        if without_others(content(target)) not in (OLD, NEW):
            yield f'not restored: {content(target)}'
        write(new, LATER)
    if content(target) != LATER | OTHERS:
        yield f'later: {content(target)}'
    if [path.name for path in target.parent.iterdir()] != [target.name]:
        yield f'left: {[path.name for path in target.parent.iterdir()]}'


def run(exchanges):
    """Return the number of steps, and the faults by step."""
    if not exchanges:
        folders.exchange = lambda first, second: False
    step, faults = 0, {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, 'graphs')
            write(target, OLD | OTHERS)
            if not killed_before(step, target):
                return step, faults
            if wrong := list(faults_of(target)):
                faults[step] = wrong
        step += 1


if __name__ == '__main__':
    sys.stdout.write(json.dumps([run(True), run(False)]))
