"""`graph.py check-scn`, `check-folder`, `write-tables`: files for programs that read ONNX in their own way.

libspconv reads a sparse graph; the programs of `consumers` load a folder of graphs, and compute between them.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, escape
from mmdeploy_ext.core.files import check_writable
from mmdeploy_ext.core.violations import ERROR, WARNING, errors

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from rich.console import Console

    from mmdeploy_ext.cli.graph_commands.command import AddArgument
    from mmdeploy_ext.core.violations import Violation

COMMANDS = Commands()
LONGEST_MESSAGE = 1000
"""Characters of a message, and of the names of its nodes, that are printed; a file can have more of both."""


def find_contract(args: argparse.Namespace, modules: Mapping[str, str]) -> tuple[str, ModuleType]:
    """Return the name of a contract and its module, one of `modules`, a dict of `consumers`.

    The contract is that of --contract; without it the only one, or of several the one with most files in the
    folder, by the `PATTERNS` of their modules.

    Raises:
        UsageError: no contract has the name of --contract, or none of several has a file there.
    """
    name = args.contract
    if not name and len(modules) == 1:
        (name,) = modules
    elif not name:
        folder = Path(args.folder)
        counts = {
            contract: sum(len(list(folder.glob(text))) for text in importlib.import_module(module).PATTERNS)
            for contract, module in modules.items()
        }
        name = max(counts, key=lambda contract: counts[contract])
        if not counts[name]:
            got = 'has no file of a contract' if folder.is_dir() else 'no such folder'
            if folder.is_file():
                got = 'is a file, expected the folder that it is in'
            raise UsageError(f'{args.folder}: {got}; there are {", ".join(modules)}, see --contract')
    if name not in modules:
        raise UsageError(f'--contract {name}: expected one of {", ".join(modules)}')
    return name, importlib.import_module(modules[name])


def _folder(text: str) -> tuple[AddArgument, AddArgument]:
    contract = argument('--contract NAME', 'which one (default: by the files that are there)')
    return argument('folder FOLDER', text), contract


@COMMANDS.add(
    'check-scn',
    "Check a sparse graph against the rules of NVIDIA's libspconv engine",
    argument(
        '--max-voxels N',
        'most voxels of one sweep: a smaller output bound is an error, behind a stride a warning '
        '(default: 160000, and only warnings)',
        type=int,
    ),
    argument('--strict', 'warnings fail, too'),
)
def run_scn(args: argparse.Namespace) -> int:
    """Check a file against the rules of libspconv and print the findings.

    `args` are the parsed arguments of this command. Return 0, or 1 if a rule is broken, with --strict also
    after warnings. UsageError: --max-voxels below 1. ModelFileError: the file cannot be read.
    """
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.sparse import libspconv_contract

    cli.check_minimums(args, max_voxels=1)
    model = files.read(args.file)
    violations = libspconv_contract.check(model, max_voxels=args.max_voxels, name=args.file)
    nodes = len(model.graph.node)
    return _judge(args, violations, dict(file=args.file, nodes=nodes), f'{args.file}: {nodes} nodes')


@COMMANDS.add(
    'check-folder',
    'Check a folder of graphs against the contract of the engine that loads it',
    *_folder('of ONNX files, whoever wrote them'),
    argument('--strict', 'warnings fail, too'),
    takes_file=False,
)
def run_check(args: argparse.Namespace) -> int:
    """Check a folder against a contract and print the findings.

    `args` are the parsed arguments of this command. Return 0, or 1 if the contract is broken, with --strict
    also after warnings. UsageError: see `find_contract`; ModelFileError: what the contract cannot
    check, with --contract also a folder that is not there.
    """
    from mmdeploy_ext.consumers import FOLDERS

    name, module = find_contract(args, FOLDERS)
    violations, files = module.check(args.folder)
    names = {key: str(path) for key, path in files.items()}
    facts = dict(folder=args.folder, contract=name, files=names)
    return _judge(args, violations, facts, f'{args.folder}: {name}, {len(files)} files')


def _judge(
    args: argparse.Namespace, violations: Sequence[Violation], facts: dict[str, Any], title: str
) -> int:
    """Write and print violations: 0 the contract is kept, 1 it is not."""
    held = not (violations if args.strict else errors(violations))
    write_json(args, dict(facts, kept=held, violations=[dataclasses.asdict(entry) for entry in violations]))
    console = cli.stdout()
    if violations:
        _print_violations(violations, console)
    counts = [sum(entry.severity == severity for entry in violations) for severity in (ERROR, WARNING)]
    verdict = ('CONTRACT KEPT', 'bold green') if held else ('CONTRACT BROKEN', 'bold red')
    cli.say(console, f'{title}, {counts[0]} errors, {counts[1]} warnings', *verdict)
    return 0 if held else 1


def _print_violations(violations: Sequence[Violation], console: Console) -> None:
    """Print violations as a table; those that differ in the node alone, or in the file, share a row."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title, width in (('', None), ('node', 30), ('rule', None), ('what the engine would do', None)):
        table.add_column(title, overflow='fold', max_width=width)
    colours = {'error': 'bold red', 'warning': 'yellow'}
    nodes_of: dict[tuple[str, str, str], list[str]] = {}
    for entry in violations:
        nodes_of.setdefault((entry.severity, entry.rule, entry.message), []).append(entry.node or 'file')
    for (severity, rule, message), nodes in nodes_of.items():
        mark = f'[{colours[severity]}]{severity}[/]'
        texts = [
            f'{text[:LONGEST_MESSAGE]}...' if len(text) > LONGEST_MESSAGE else text
            for text in (', '.join(nodes), message)
        ]
        table.add_row(mark, escape(texts[0]), rule, escape(texts[1]))
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
    """Write the tables of a rig, and print what their contract counted."""
    from mmdeploy_ext.consumers import TABLES

    name, module = find_contract(args, TABLES)
    check_writable(args.output)
    facts = module.write_tables(args.folder, args.calibration, args.output)
    write_json(args, dict(folder=args.folder, contract=name, output=args.output, **facts))
    counts = ', '.join(f'{count} {fact.replace("_", " ")}' for fact, count in facts.items())
    cli.say(cli.stdout(), f'{args.output}: {counts}')
    return 0
