"""The command of this project in a process that finds no package but numpy."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys

class NumpyAlone:
    def find_spec(name, path=None, target=None):
        package = name.partition('.')[0]
        if package not in {*sys.stdlib_module_names, 'numpy', 'mmdeploy_ext'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, NumpyAlone)
from mmdeploy_ext.cli.command import main
sys.exit(main(sys.argv[1:]))
"""


def run_command(*words):
    """Run `mm2onnx WORDS`; return the finished process with what it printed."""
    return subprocess.run(
        [sys.executable, '-c', CODE, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
