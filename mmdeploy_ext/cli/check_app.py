"""`mm2onnx check`: what the program that loads a file or a folder would reject or misread."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, escape
from mmdeploy_ext.base.violations import ERROR, NOTE, WARNING, Violation
from mmdeploy_ext.cli.graph_commands.command import write_json
from mmdeploy_ext.spec.registry import folder_checks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from rich.console import Console


LONGEST_MESSAGE = 1000
"""Printed characters of a message, and of its nodes' names; --json has all."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description="Check a sparse graph against the rules of NVIDIA's libspconv engine, or a folder of "
        'graphs against the contract of the program that loads it. Exit status 1 with errors.'
    )
    add = cli.adder(parser)
    add('folder PATH', 'sparse graph (.onnx), or folder of ONNX files and manifests; any exporter')
    add('--contract NAME', 'contract of a folder (default: detected from its files)')
    add(
        '--max-voxels N',
        'sparse graph: largest number of voxels of a sweep; a smaller output bound is an error, or a '
        'warning after a stride (default: 160000, warnings only)',
        type=int,
    )
    add('--strict', 'also fail on warnings')
    add('--json FILE', 'also write the findings as JSON')
    return parser


def find_contract(args: argparse.Namespace, modules: Mapping[str, str]) -> tuple[str, ModuleType]:
    """Name of a contract and its module."""
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
            got = 'has no file that a program loads' if folder.is_dir() else 'no such folder'
            if folder.is_file():
                got = 'is a file, expected its folder'
            raise UsageError(f'{args.folder}: {got}; there are {", ".join(modules)}, see --contract')
    if name not in modules:
        raise UsageError(f'--contract {name}: expected one of {", ".join(modules)}')
    return name, importlib.import_module(modules[name])


def run(args: argparse.Namespace) -> int:
    cli.check_minimums(args, max_voxels=1)
    is_file = Path(args.folder).is_file()
    if is_file and not args.contract:
        return check_sparse(args)
    if args.max_voxels is not None:
        raise UsageError(f'--max-voxels {args.max_voxels}: requires a sparse graph; {args.folder} is not one')
    return check_folder(args)


def check_sparse(args: argparse.Namespace) -> int:
    """Check a file against the rules of libspconv."""
    from mmdeploy_ext.exporting.sparse import libspconv_contract
    from mmdeploy_ext.graphs.io import files

    model = files.read(args.folder)
    if not any(node.op_type == 'SparseConvolution' for node in model.graph.node):
        raise UsageError(
            f'{args.folder}: is not a sparse graph of libspconv; expected one, or a folder that '
            f'a program loads'
        )
    violations = libspconv_contract.check(model, max_voxels=args.max_voxels, name=args.folder)
    nodes = len(model.graph.node)
    return judge(args, violations, dict(file=args.folder, nodes=nodes), f'{args.folder}: {nodes} nodes')


def check_folder(args: argparse.Namespace) -> int:
    name, module = find_contract(args, folder_checks())
    violations, files = module.check(args.folder)
    names = {key: str(path) for key, path in files.items()}
    facts = dict(folder=args.folder, contract=name, files=names)
    return judge(args, violations, facts, f'{args.folder}: {name}, {len(files)} files')


def judge(
    args: argparse.Namespace, violations: Sequence[Violation], facts: dict[str, Any], title: str
) -> int:
    """Write and print violations: 0 the contract is kept, 1 it is not."""
    severities = (ERROR, WARNING) if args.strict else (ERROR,)
    kept = not any(entry.severity in severities for entry in violations)
    write_json(args, dict(facts, kept=kept, violations=[dataclasses.asdict(entry) for entry in violations]))
    console = cli.stdout()
    if violations:
        _print_violations(violations, console)
    counts = [sum(entry.severity == severity for entry in violations) for severity in (ERROR, WARNING)]
    verdict = ('CONTRACT KEPT', 'bold green') if kept else ('CONTRACT BROKEN', 'bold red')
    cli.say(console, f'{title}, {counts[0]} errors, {counts[1]} warnings', *verdict)
    return 0 if kept else 1


def _print_violations(violations: Sequence[Violation], console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title, width in (('', None), ('node', 30), ('rule', None), ('what the engine would do', None)):
        table.add_column(title, overflow='fold', max_width=width)
    colours = {ERROR: 'bold red', WARNING: 'yellow', NOTE: 'dim'}
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


main = cli.program(run, build_parser)


def check_autoware(argv: Sequence[str] | None = None) -> int:
    """`check_autoware.py`: the tool for folders that a node of Autoware loads."""
    parser = build_parser()
    parser.set_defaults(contract='autoware')
    return cli.run(run, parser, argv)
