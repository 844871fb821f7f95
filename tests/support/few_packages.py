"""This project in a process that finds a few packages alone."""

import subprocess
import sys
from pathlib import Path

FEW = """
import sys

class Few:
    packages = {*sys.stdlib_module_names, 'mmdeploy_ext', *sys.argv.pop(1).split(',')}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition('.')[0] not in cls.packages:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Few)
"""
COMMAND = """
from mmdeploy_ext.cli.command import main
sys.exit(main(sys.argv[1:]))
"""


def run_code(code, *words, packages=('numpy',)):
    """Run code with `words` in sys.argv; return the finished process with what it printed."""
    return subprocess.run(
        [sys.executable, '-c', FEW + code, ','.join(packages), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def run_command(*words, packages=('numpy',)):
    """Run `mm2onnx WORDS`, see `run_code`."""
    return run_code(COMMAND, *words, packages=packages)
