"""`graph.py check-folder`, `write-tables`: folders of files for an engine that computes a part itself."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps.graph_commands.command import Command, add_output, write_json
from mmdeploy_ext.apps.graph_commands.sparse import print_violations
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import check_writable

if TYPE_CHECKING:
    import argparse


def known(attribute: str) -> dict[str, Any]:
    """Return name of a contract -> function: of `contract.py` of the families' packages of `runtime`.

    Args:
        attribute: 'CONTRACTS', the readers of folders, 'FILES', the names by which a folder is known, or
            'TABLES', what writes the tables of a rig.
    """
    from mmdeploy_ext import runtime

    found: dict[str, Any] = {}
    for package in pkgutil.iter_modules(runtime.__path__):
        if package.ispkg:
            module = importlib.import_module(f'{runtime.__name__}.{package.name}')
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


def _folder(parser: argparse.ArgumentParser, text: str) -> None:
    cli.add(parser, 'folder FOLDER', text)
    cli.add(parser, '--contract NAME', 'which one (default: by the files that are there)')


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _folder(parser, 'of ONNX files, whoever wrote them')
    cli.add(parser, '--strict', 'warnings fail, too')


def run_check(args: argparse.Namespace) -> int:
    """Check a folder against a contract and print what was found."""
    from mmdeploy_ext.sparse import contract

    name, read = chosen(args, 'CONTRACTS')
    found, files = read(args.folder)
    held = not (found if args.strict else contract.errors(found))
    violations = [dataclasses.asdict(entry) for entry in found]
    names = {key: str(path) for key, path in files.items()}
    write_json(args, dict(folder=args.folder, contract=name, kept=held, files=names, violations=violations))
    console = cli.stdout()
    print_violations(found, console)
    counts = [sum(entry.severity == kind for entry in found) for kind in (contract.ERROR, contract.WARNING)]
    said = f'{args.folder}: {name}, {len(files)} files, {counts[0]} errors, {counts[1]} warnings'
    verdict = ('CONTRACT KEPT', 'bold green') if held else ('CONTRACT BROKEN', 'bold red')
    cli.say(console, said, *verdict)
    return 0 if held else 1


def _tables_arguments(parser: argparse.ArgumentParser) -> None:
    _folder(parser, 'of an export')
    cli.add(parser, 'calibration CALIBRATION', '.npz file of the matrices of a rig')
    add_output(parser, 'FILE', 'the tables, .npz')


def run_tables(args: argparse.Namespace) -> int:
    """Write the tables of a rig and print how large they are."""
    name, write = chosen(args, 'TABLES')
    check_writable(args.output)
    facts = write(args.folder, args.calibration, args.output)
    write_json(args, dict(folder=args.folder, contract=name, output=args.output, **facts))
    said = ', '.join(f'{count} {fact.replace("_", " ")}' for fact, count in facts.items())
    cli.stdout().print(f'{args.output}: {said}', highlight=False)
    return 0


COMMANDS = {
    'check-folder': Command(
        'Check a folder of graphs against the contract of the engine that loads it',
        run_check,
        _check_arguments,
        takes_file=False,
    ),
    'write-tables': Command(
        'Write the tables of a rig that the engine of a folder computes itself',
        run_tables,
        _tables_arguments,
        takes_file=False,
    ),
}
