"""`graph.py check-scn`: a sparse file against the contract of its engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.apps.graph_commands.command import Command, write_json
from mmdeploy_ext.core import cli

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from mmdeploy_ext.sparse.contract import Violation


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(
        parser,
        '--max-voxels N',
        'most voxels of one sweep: an output bound below it is an error (default: 160000, a warning)',
        type=int,
    )
    cli.add(parser, '--strict', 'warnings fail, too')


def run_check(args: argparse.Namespace) -> int:
    """Check a file against the engine's contract and print what was found."""
    from mmdeploy_ext.sparse import contract

    cli.check_least(args, max_voxels=1)
    model = contract.load_model(args.file)
    found = contract.check(model, max_voxels=args.max_voxels, name=args.file)
    wrong = found if args.strict else contract.errors(found)
    counts = [sum(entry.severity == kind for entry in found) for kind in (contract.ERROR, contract.WARNING)]
    summary = f'{args.file}: {len(model.graph.node)} nodes, {counts[0]} errors, {counts[1]} warnings'
    held = not wrong
    violations = [dataclasses.asdict(entry) for entry in found]
    write_json(args, dict(file=args.file, kept=held, nodes=len(model.graph.node), violations=violations))
    console = cli.stdout()
    print_violations(found, console)
    colour = 'bold green' if held else 'bold red'
    word = 'CONTRACT KEPT' if held else 'CONTRACT BROKEN'
    cli.say(console, summary, word, colour)
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


COMMANDS = {
    'check-scn': Command(
        "Check a sparse graph against the rules of NVIDIA's libspconv engine", run_check, _check_arguments
    ),
}
