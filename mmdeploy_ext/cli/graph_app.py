"""`graph.py`: look at ONNX files, compare, cut, rewrite and check them."""

import argparse
import contextlib
import re
from collections.abc import Iterator

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import Mm2OnnxError
from mmdeploy_ext.cli.graph_commands import comparison, editing, reduction

COMMANDS = editing.COMMANDS | comparison.COMMANDS | reduction.COMMANDS


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description='Show, compare, cut, rewrite and check ONNX files.')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=f'{command.help}.')
        if command.takes_file:
            cli.add(sub, 'file FILE', 'ONNX file')
        for add in command.arguments:
            add(sub)
        cli.add(sub, '--json FILE', 'also write the findings as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    with naming(getattr(args, 'file', None)):
        return COMMANDS[args.command].run(args)


@contextlib.contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Put the file's name before the text of an `Mm2OnnxError`, once."""
    try:
        yield
    except Mm2OnnxError as error:
        if file is not None and not re.search(rf'(?<![\w./-]){re.escape(file)}(?!\w)', str(error)):
            error.args = (f'{file}: {error}',)
        raise


main = cli.program(run, build_parser)
