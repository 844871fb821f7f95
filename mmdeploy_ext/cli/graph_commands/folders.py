"""`graph.py check-scn`, `check-folder`, `write-tables`: files for engines that compute a part themselves."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import check_writable
from mmdeploy_ext.core.printable import escape
from mmdeploy_ext.core.violations import ERROR, WARNING, errors

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from mmdeploy_ext.cli.graph_commands.command import Adds
    from mmdeploy_ext.core.violations import Violation

COMMANDS = Commands()
LONGEST_MESSAGE = 1000
"""Characters of a finding that are printed; names and texts of a file can be of any length."""


def known(attribute: str) -> dict[str, Any]:
    """Return name of a contract -> function: of `contract.py` of the packages of `consumers`.

    Args:
        attribute: 'CONTRACTS', the readers of folders, 'FILES', the names by which a folder is known, or
            'TABLES', what writes the tables of a rig.
    """
    from mmdeploy_ext import consumers

    found: dict[str, Any] = {}
    for package in pkgutil.iter_modules(consumers.__path__):
        if package.ispkg:
            module = importlib.import_module(f'{consumers.__name__}.{package.name}')
            if any(one.name == 'contract' for one in pkgutil.iter_modules(module.__path__)):
                contract = importlib.import_module(f'{module.__name__}.contract')
                found |= getattr(contract, attribute, {})
    return found


def chosen(args: argparse.Namespace, attribute: str) -> tuple[str, Any]:
    """Return the contract that is asked for, or that the folder's files are of, and its function."""
    found = known(attribute)
    name = args.contract or (next(iter(found)) if len(found) == 1 else _recognised(args.folder))
    if name not in found:
        raise UsageError(f'--contract {name}: expected one of {", ".join(found)}')
    return name, found[name]


def _recognised(folder: str) -> str:
    """Return the contract of which most files are in a folder; '' where none is."""
    counts = {
        name: sum(len(list(Path(folder).glob(pattern))) for pattern in patterns)
        for name, patterns in known('FILES').items()
    }
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ''


def _folder(text: str) -> tuple[Adds, Adds]:
    named = 'which one (default: by the files that are there)'
    return argument('folder FOLDER', text), argument('--contract NAME', named)


@COMMANDS.add(
    'check-scn',
    "Check a sparse graph against the rules of NVIDIA's libspconv engine",
    argument(
        '--max-voxels N',
        'most voxels of one sweep: an output bound below it is an error (default: 160000, a warning)',
        type=int,
    ),
    argument('--strict', 'warnings fail, too'),
)
def run_scn(args: argparse.Namespace) -> int:
    """Check a file against the engine's contract and print what was found."""
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.sparse import libspconv_contract

    cli.check_least(args, max_voxels=1)
    model = files.read(args.file)
    found = libspconv_contract.check(model, max_voxels=args.max_voxels, name=args.file)
    nodes = len(model.graph.node)
    return _judge(args, found, dict(file=args.file, nodes=nodes), f'{args.file}: {nodes} nodes')


@COMMANDS.add(
    'check-folder',
    'Check a folder of graphs against the contract of the engine that loads it',
    *_folder('of ONNX files, whoever wrote them'),
    argument('--strict', 'warnings fail, too'),
    takes_file=False,
)
def run_check(args: argparse.Namespace) -> int:
    """Check a folder against a contract and print what was found."""
    name, read = chosen(args, 'CONTRACTS')
    found, files = read(args.folder)
    names = {key: str(path) for key, path in files.items()}
    facts = dict(folder=args.folder, contract=name, files=names)
    return _judge(args, found, facts, f'{args.folder}: {name}, {len(files)} files')


def _judge(args: argparse.Namespace, found: Sequence[Violation], facts: dict[str, Any], said: str) -> int:
    """Write and print what was found: 0 the contract is kept, 1 it is not."""
    held = not (found if args.strict else errors(found))
    write_json(args, dict(facts, kept=held, violations=[dataclasses.asdict(entry) for entry in found]))
    console = cli.stdout()
    _print_violations(found, console)
    counts = [sum(entry.severity == kind for entry in found) for kind in (ERROR, WARNING)]
    verdict = ('CONTRACT KEPT', 'bold green') if held else ('CONTRACT BROKEN', 'bold red')
    cli.say(console, f'{said}, {counts[0]} errors, {counts[1]} warnings', *verdict)
    return 0 if held else 1


def _print_violations(found: Sequence[Violation], console: Console) -> None:
    """Print violations as a table; nothing when there are none."""
    from rich import box
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
        if len(message) > LONGEST_MESSAGE:
            message = f'{message[:LONGEST_MESSAGE]}...'
        table.add_row(mark, escape(', '.join(nodes)), rule, escape(message))
    console.print(table)


@COMMANDS.add(
    'write-tables',
    'Write the tables of a rig that the engine of a folder computes itself',
    *_folder('of an export'),
    argument('calibration CALIBRATION', '.npz file of the matrices of a rig'),
    output('FILE', 'the tables, .npz'),
    takes_file=False,
)
def run_tables(args: argparse.Namespace) -> int:
    """Write the tables of a rig and print how large they are."""
    name, write = chosen(args, 'TABLES')
    check_writable(args.output)
    facts = write(args.folder, args.calibration, args.output)
    write_json(args, dict(folder=args.folder, contract=name, output=args.output, **facts))
    said = ', '.join(f'{count} {fact.replace("_", " ")}' for fact, count in facts.items())
    cli.say(cli.stdout(), f'{args.output}: {said}')
    return 0
