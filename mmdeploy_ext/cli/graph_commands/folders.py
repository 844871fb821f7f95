"""`graph.py write-tables`: the tables of a rig, for programs that do not compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.cli.check_app import find_contract
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.spec.registry import rig_tables

if TYPE_CHECKING:
    import argparse

COMMANDS = Commands()


@COMMANDS.add(
    'write-tables',
    'Write the tables of a camera rig that the program of a folder computes itself',
    argument('folder FOLDER', 'of an export'),
    argument('--contract NAME', 'contract of the folder (default: detected from its files)'),
    argument('calibration CALIBRATION', '.npz file with the matrices of a camera rig'),
    output('FILE', 'the tables, .npz'),
    takes_file=False,
)
def run_tables(args: argparse.Namespace) -> int:
    name, module = find_contract(args, rig_tables())
    check_writable(args.out)
    facts = module.write_tables(args.folder, args.calibration, args.out)
    write_json(args, dict(folder=args.folder, contract=name, output=args.out, **facts))
    counts = ', '.join(f'{count} {fact.replace("_", " ")}' for fact, count in facts.items())
    cli.say(cli.stdout(), f'{args.out}: {counts}')
    return 0
