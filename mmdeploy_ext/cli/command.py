"""`mm2onnx`: the tools as sub-commands, with the code and options of the scripts in `tools/`."""
# PYTHON_ARGCOMPLETE_OK

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext import __version__
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.commands import CHECKOUT, SCRIPTS, sub_commands

STACK = ('torch', 'mmcv', 'mmdet')
"""Modules of PyTorch and OpenMMLab."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """One sub-command.

    Attributes:
        module: its `main(argv)` runs it, its `build_parser()` gives its options.
        help: one line, without a full stop.
        needs: modules of `STACK` that it needs.
        without: an option with which it needs none of them.
    """

    module: str
    help: str
    needs: tuple[str, ...] = ()
    without: str = ''

    def load(self) -> Any:
        """Import and return the module."""
        return importlib.import_module(self.module)

    def missing(self) -> list[str]:
        """Return the modules that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def is_elsewhere() -> bool:
    """Return whether the working directory is a checkout whose package is not this one, links followed.

    By a link the folder may have this very package: the process that replaces this one would start it again
    and again.
    """
    is_checkout = all(Path(name).is_file() for name in (SCRIPTS['export'], 'mmdeploy_ext/__main__.py'))
    return is_checkout and not Path('mmdeploy_ext').samefile(CHECKOUT / 'mmdeploy_ext')


TOOLS = {
    'run': Tool('mmdeploy_ext.cli.run_app', 'Run an exported file and draw what it finds'),
    'info': Tool('mmdeploy_ext.cli.info_app', 'Show the metadata of an exported file'),
    'graph': Tool(
        'mmdeploy_ext.cli.graph_app', 'Look at any ONNX file: show, draw, compare, cut, rewrite, reduce'
    ),
    'compare': Tool('mmdeploy_ext.cli.compare_app', 'Find the first tensor in which two files differ'),
    'check': Tool(
        'mmdeploy_ext.cli.check_autoware_app', 'Find what a node of Autoware would reject in a folder'
    ),
    'quantize': Tool('mmdeploy_ext.cli.quantize_app', 'Quantise an exported file to INT8 on images'),
    'tensorrt': Tool('mmdeploy_ext.cli.tensorrt_app', 'Build a TensorRT engine of an exported file'),
    'doctor': Tool('mmdeploy_ext.compat.doctor', 'Check what is installed; each problem with its fix'),
    'export': Tool(
        'mmdeploy_ext.cli.export_app', 'Export a detector, and prove the file with --verify', needs=STACK
    ),
    'verify': Tool('mmdeploy_ext.cli.verify_app', 'Prove a file that was exported earlier', needs=STACK),
    'prove-module': Tool(
        'mmdeploy_ext.cli.prove_module_app',
        'Prove any ONNX file against any PyTorch module',
        needs=('torch',),
    ),
    'kit': Tool(
        'mmdeploy_ext.cli.kit_app',
        "Write a file, inputs and PyTorch's results for another device",
        needs=STACK,
        without='--serve',
    ),
    'judge': Tool('mmdeploy_ext.cli.judge_app', 'Judge what a device made of the inputs of a kit'),
    'lint': Tool('mmdeploy_ext.cli.lint_app', 'Find what an export of a model will get wrong', needs=STACK),
    'export-backbone': Tool(
        'mmdeploy_ext.cli.export_scn_app', 'Export the sparse backbone of a LiDAR model', needs=STACK
    ),
    'calibrate': Tool(
        'mmdeploy_ext.cli.scn_ptq_app', 'Calibrate INT8 ranges of a sparse backbone', needs=STACK
    ),
    'benchmark': Tool(
        'mmdeploy_ext.cli.benchmark_app', 'Measure PyTorch and engines against each other', needs=STACK
    ),
    'test': Tool(
        'mmdeploy_ext.cli.test_app', 'Evaluate a detector with PyTorch or an ONNX engine', needs=STACK
    ),
    'zoo': Tool('mmdeploy_ext.cli.zoo_app', 'Export and prove many configs with seeded weights', needs=STACK),
    'infos': Tool('mmdeploy_ext.cli.infos_app', 'Make the info files of a data set', needs=STACK),
    'convert-mmdet3': Tool(
        'mmdeploy_ext.cli.convert_mmdet3_app', 'Convert a checkpoint or config of mmdet 3', needs=STACK
    ),
    'convert-rtdetr': Tool(
        'mmdeploy_ext.cli.convert_rtdetr_app', 'Convert a checkpoint of RT-DETR', needs=STACK
    ),
    'convert-solo': Tool('mmdeploy_ext.cli.convert_solo_app', 'Convert a checkpoint of SOLO', needs=STACK),
    'sweep': Tool(
        'mmdeploy_ext.cli.lidar_demo_app', 'Draw the boxes of a LiDAR sweep from above', needs=STACK
    ),
    'video': Tool('mmdeploy_ext.cli.video_app', "Draw a scene's boxes as a film or pictures", needs=STACK),
    'synthetic': Tool(
        'mmdeploy_ext.cli.synthetic_app',
        'Generate a COCO set, a nuScenes set, or seeded weights',
        needs=STACK,
    ),
}
"""Name -> sub-command."""


def build_parser(command: str = '') -> argparse.ArgumentParser:
    """Return the parser; of the sub-commands only `command` has its options."""
    parser = cli.ArgumentParser(
        prog='mm2onnx',
        description='Run, inspect and compare exported detectors; with PyTorch and OpenMMLab also export and '
        'prove them.',
        epilog='mm2onnx COMMAND --help has the options of each.',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, tool in TOOLS.items():
        missing = ', '.join(tool.missing())
        commands.add_parser(name, help=tool.help + (f' (not here: it needs {missing})' if missing else ''))
    if command in TOOLS:
        commands.choices[command] = TOOLS[command].load().build_parser()
    return parser


def complete() -> None:
    """Print shell completions and exit, if the shell asks for them; without argcomplete do nothing."""
    with contextlib.suppress(ImportError):
        import argcomplete

        words = os.environ.get('COMP_LINE', '').split()
        argcomplete.autocomplete(build_parser(words[1] if len(words) > 1 else ''))


@contextlib.contextmanager
def as_program(name: str) -> Iterator[None]:
    """Inside the block argparse and messages use the name and commands of `mm2onnx`, not of a script."""
    before, sys.argv[0] = sys.argv[0], name
    try:
        with sub_commands():
            yield
    finally:
        sys.argv[0] = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status, 2 if modules that it needs are not installed.

    `argv` are the sub-command's name and words, by default those of the process. In a checkout that is not
    the one of this package a tool that needs PyTorch replaces the process by one with the code of that
    checkout. SystemExit: --help, --version, or a word that no parser takes.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if '_ARGCOMPLETE' in os.environ:
        complete()
    tool = TOOLS.get(words[0]) if words else None
    if tool is None:
        return cli.run(lambda _: 0, build_parser(), words)
    missing = tool.missing()
    options = {word.partition('=')[0] for word in words}
    if missing and not {'-h', '--help', tool.without or '--help'} & options:
        print(
            f'error: mm2onnx {words[0]} needs PyTorch and OpenMMLab (not installed for {sys.executable}: '
            f'{", ".join(missing)}); make env in a checkout of the repository, or the pip commands of its '
            f'docs/your-checkpoint.md, install them',
            file=sys.stderr,
        )
        return 2
    if tool.needs and is_elsewhere():  # the code of the checkout with its families
        paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get('PYTHONPATH')]))
        environment = {**os.environ, 'PYTHONPATH': paths}
        os.execve(sys.executable, [sys.executable, '-m', 'mmdeploy_ext', *words], environment)
    with as_program(f'mm2onnx {words[0]}'):
        return tool.load().main(argv=words[1:])
