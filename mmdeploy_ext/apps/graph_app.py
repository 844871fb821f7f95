"""`graph.py`: look at ONNX files, and check them; one subcommand per question. Needs neither torch nor mmcv.

A subcommand is an entry of `COMMANDS`: what it asks for, and what it does with it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import cli

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from mmdeploy_ext.sparse.contract import Violation


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        help: one line.
        add_arguments: adds its own arguments; the file, --json and --debug are there already.
        run: does it and returns the exit status.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Look at ONNX files and check them, sparse ones and ordinary ones.'
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=f'{command.help}.')
        sub.add_argument('file', metavar='FILE', help='ONNX file')
        command.add_arguments(sub)
        sub.add_argument('--json', metavar='FILE', help='also write what was found as JSON')
        cli.add_debug_option(sub)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    from mmdeploy_ext.files import check_writable

    if args.json:
        check_writable(args.json)
    return COMMANDS[args.command].run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 done, 1 checked and failed, 2 usage.
    """
    return cli.run(run, build_parser(), argv)


def _write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    from mmdeploy_ext.files import write_json

    if args.json:
        write_json(args.json, content)


# ---- check-scn


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--max-voxels',
        type=int,
        metavar='N',
        help='most voxels of one sweep: an output bound below it is an error (default: 160000, a warning)',
    )
    parser.add_argument('--strict', action='store_true', help='warnings fail, too')


def run_check(args: argparse.Namespace) -> int:
    """Check a file against the engine's contract and print what was found."""
    from mmdeploy_ext.errors import UsageError
    from mmdeploy_ext.sparse import contract

    if args.max_voxels is not None and args.max_voxels < 1:
        raise UsageError(f'--max-voxels {args.max_voxels}: expected a positive number')
    model = contract.load_model(args.file)
    found = contract.check(model, max_voxels=args.max_voxels, name=args.file)
    wrong = found if args.strict else contract.errors(found)
    console = cli.stdout()
    print_violations(found, console)
    counts = [sum(entry.severity == kind for entry in found) for kind in (contract.ERROR, contract.WARNING)]
    summary = f'{args.file}: {len(model.graph.node)} nodes, {counts[0]} errors, {counts[1]} warnings'
    held = not wrong
    colour = 'bold green' if held else 'bold red'
    word = 'CONTRACT KEPT' if held else 'CONTRACT BROKEN'
    console.print(f'[{colour}]{word}[/{colour}] ', end='')
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    violations = [dataclasses.asdict(entry) for entry in found]
    _write_json(args, dict(file=args.file, kept=held, nodes=len(model.graph.node), violations=violations))
    return 0 if held else 1


def print_violations(found: Sequence[Violation], console: Console) -> None:
    """Print violations as a table; nothing when there are none."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if not found:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title, width in (('', None), ('node', 30), ('rule', None), ('what the engine would do', None)):
        table.add_column(title, overflow='fold', max_width=width)
    colours = {'error': 'bold red', 'warning': 'yellow'}
    same: dict[tuple[str, str, str], list[str]] = {}
    for entry in found:
        same.setdefault((entry.severity, entry.rule, entry.message), []).append(entry.node or 'file')
    for (severity, rule, message), nodes in same.items():
        mark = f'[{colours[severity]}]{severity}[/]'
        table.add_row(mark, escape(', '.join(nodes)), rule, escape(message))
    console.print(table)


# ---- show


def run_show(args: argparse.Namespace) -> int:
    """Print what is in a file."""
    from mmdeploy_ext.graph import show
    from mmdeploy_ext.sparse.contract import load_model

    content = show.describe(load_model(args.file))
    for line in show.lines(content):
        print(line)
    _write_json(args, dict(file=args.file, **content))
    return 0


# ---- draw


def _draw_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--output', required=True, metavar='x.svg', help='picture to write: .svg, .png or .pdf'
    )


def run_draw(args: argparse.Namespace) -> int:
    """Draw a sparse graph."""
    from pathlib import Path

    from mmdeploy_ext.files import check_writable
    from mmdeploy_ext.graph.draw import draw_sparse
    from mmdeploy_ext.graph.show import describe
    from mmdeploy_ext.sparse.contract import load_model

    check_writable(args.output)
    model = load_model(args.file)
    draw_sparse(model, args.output, Path(args.file).name)
    print(f'{args.output}: {len(model.graph.node)} nodes drawn')
    _write_json(args, dict(file=args.file, picture=args.output, **describe(model)))
    return 0


COMMANDS = {
    'show': Command('Print what is in a file: node by node when it is sparse', lambda parser: None, run_show),
    'draw': Command('Draw a sparse graph (libspconv dialect)', _draw_arguments, run_draw),
    'check-scn': Command(
        "Check a sparse graph against the rules of NVIDIA's libspconv engine", _check_arguments, run_check
    ),
}
