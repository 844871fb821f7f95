"""`mm2onnx`: the tools as sub-commands, with the code and options of the scripts in `tools/`."""
# PYTHON_ARGCOMPLETE_OK

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence

from mmdeploy_ext import __version__
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import COMMANDS, Command, sub_commands


def missing_modules(tool: Command) -> list[str]:
    return [name for name in tool.needs if importlib.util.find_spec(name) is None]


def build_parser(command: str = '', words: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        prog='mm2onnx',
        description='Run, inspect and compare exported detectors; with PyTorch and OpenMMLab also export and '
        'prove them.',
        epilog='mm2onnx COMMAND --help shows its options.',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, tool in COMMANDS.items():
        missing = ', '.join(missing_modules(tool))
        commands.add_parser(name, help=tool.help + (f' (not available: needs {missing})' if missing else ''))
    if command in COMMANDS:
        app = importlib.import_module(COMMANDS[command].module)
        chosen = [app.chosen_by(words)] if hasattr(app, 'chosen_by') else []
        commands.choices[command] = app.build_parser(*chosen)
    return parser


def complete() -> None:
    """Print shell completions and exit, if the shell asks for them; needs argcomplete."""
    with contextlib.suppress(ImportError):
        import argcomplete

        words = os.environ.get('COMP_LINE', '').split()
        argcomplete.autocomplete(
            build_parser(words[1] if len(words) > 1 else '', words), print_suppressed=True
        )


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
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ['--debug'] and words[1:2] and words[1] in COMMANDS:
        words = [*words[1:], '--debug']
    if '_ARGCOMPLETE' in os.environ:
        complete()
    tool = COMMANDS.get(words[0]) if words else None
    if tool is None:
        return cli.run(lambda _: 0, build_parser(), words)
    missing = missing_modules(tool)
    options = {word.partition('=')[0] for word in words}
    if missing and not {'-h', '--help', tool.without or '--help'} & options:
        print(
            f'error: mm2onnx {words[0]} needs PyTorch and OpenMMLab (not installed for {sys.executable}: '
            f'{", ".join(missing)}); install them with make env in a clone of the repository, or as in '
            'docs/install.md',
            file=sys.stderr,
        )
        return 2
    with as_program(f'mm2onnx {words[0]}'):
        return importlib.import_module(tool.module).main(argv=words[1:])
