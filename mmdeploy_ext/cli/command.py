"""`mm2onnx`: the tools as sub-commands, with the code and options of the scripts in `tools/`."""
# PYTHON_ARGCOMPLETE_OK

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext import __version__
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where this package is part of one."""
STACK = ('torch', 'mmcv', 'mmdet')
"""Modules of PyTorch and OpenMMLab."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """One sub-command.

    Attributes:
        module: of this package; its `main(argv)` runs it, its `build_parser()` gives its options.
        help: one line, without a full stop.
        script: of a checkout; its `register` imports the model families. '' where none are needed.
        exports: whether it does nothing without PyTorch and OpenMMLab.
        named: pattern of the scripts that messages name and that it stands for; by default `script`.
    """

    module: str
    help: str
    script: str = ''
    exports: bool = False
    named: str = ''

    def load(self) -> Any:
        """Return the module."""
        return importlib.import_module(f'mmdeploy_ext.{self.module}')

    def absent(self) -> list[str]:
        """Return the modules that it needs and that are not here."""
        return [name for name in STACK if self.exports and importlib.util.find_spec(name) is None]

    def register(self) -> None:
        """Import the model families of the checkout that this is part of, or raise a ConfigError."""
        if not (ROOT / self.script).is_file():
            raise ConfigError(
                f'{Path.cwd()}: is not a checkout of the repository, which has the model families and '
                f'configs; run it in one, or install one by pip install -e'
            )
        runpy.run_path(str(ROOT / self.script))['register']()

    def is_elsewhere(self) -> bool:
        """Return whether it is in a checkout, the working directory, and this package is part of none."""
        there = all(Path(name).is_file() for name in (self.script, 'mmdeploy_ext/__main__.py'))
        return bool(self.script) and there and not (ROOT / self.script).is_file()


TOOLS = {
    'run': Tool(
        'cli.run_app', 'Run an exported file and draw what it finds', named=r'tools/onnx/onnx_\w+\.py'
    ),
    'info': Tool('cli.info_app', 'Show the metadata of an exported file'),
    'graph': Tool(
        'cli.graph_app',
        'Look at any ONNX file: show, draw, compare, cut, rewrite, reduce',
        'tools/onnx/graph.py',
    ),
    'compare': Tool('cli.compare_app', 'Find the first tensor in which two files differ'),
    'doctor': Tool('compat.doctor', 'Check what is installed; each problem with its fix'),
    'export': Tool(
        'cli.export_app',
        'Export a detector, and prove the file with --verify',
        'tools/deployment/pytorch2onnx.py',
        exports=True,
    ),
    'verify': Tool(
        'cli.verify_app',
        'Prove a file that was exported earlier',
        'tools/deployment/verify.py',
        exports=True,
    ),
    'lint': Tool(
        'cli.lint_app', 'Find what an export of a model will get wrong', 'tools/onnx/lint.py', exports=True
    ),
}
"""Name of a sub-command -> what it is."""


def build_parser(chosen: str = '') -> argparse.ArgumentParser:
    """Return the parser; of the sub-commands only the chosen one has its options."""
    parser = cli.ArgumentParser(
        prog='mm2onnx',
        description='Run, inspect and compare exported detectors; with PyTorch and OpenMMLab also export and '
        'prove them.',
        epilog='mm2onnx COMMAND --help has the options of each.',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, tool in TOOLS.items():
        absent = ', '.join(tool.absent())
        commands.add_parser(name, help=tool.help + (f' (not here: it needs {absent})' if absent else ''))
    if chosen in TOOLS:
        commands.choices[chosen] = TOOLS[chosen].load().build_parser()
    return parser


def complete() -> None:
    """Print shell completions and exit, where the shell asks for them; without argcomplete do nothing."""
    with contextlib.suppress(ImportError):
        import argcomplete

        words = os.environ.get('COMP_LINE', '').split()
        argcomplete.autocomplete(build_parser(words[1] if len(words) > 1 else ''))


@contextlib.contextmanager
def as_program(name: str) -> Iterator[None]:
    """Inside the block argparse and messages use the name and commands of `mm2onnx`, not of a script."""
    scripts = {one: tool.named or re.escape(tool.script) for one, tool in TOOLS.items()}
    commands = {script: f'mm2onnx {one}' for one, script in scripts.items() if script}
    before, sys.argv[0] = sys.argv[0], name
    cli.SUB_COMMANDS.update(commands)
    try:
        yield
    finally:
        sys.argv[0] = before
        cli.SUB_COMMANDS.clear()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status; 2 where it needs what is not here."""
    words = sys.argv[1:] if argv is None else list(argv)
    if '_ARGCOMPLETE' in os.environ:
        complete()
    tool = TOOLS.get(words[0]) if words else None
    if tool is None:
        return cli.run(lambda _: 0, build_parser(), words)
    absent = tool.absent()
    if absent and not {'-h', '--help'} & set(words):
        print(
            f'error: mm2onnx {words[0]} needs PyTorch and OpenMMLab (not installed for {sys.executable}: '
            f'{", ".join(absent)}); make env in a checkout of the repository, or the pip commands of its '
            f'docs/your-checkpoint.md, install them',
            file=sys.stderr,
        )
        return 2
    if tool.is_elsewhere():  # its code with its families, not that of another version
        paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get('PYTHONPATH')]))
        environment = {**os.environ, 'PYTHONPATH': paths}
        os.execve(sys.executable, [sys.executable, '-m', 'mmdeploy_ext', *words], environment)
    with as_program(f'mm2onnx {words[0]}'):
        more = dict(register=tool.register) if tool.script else {}
        return tool.load().main(argv=words[1:], **more)
