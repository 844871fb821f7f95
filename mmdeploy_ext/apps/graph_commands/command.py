"""What a subcommand of `graph.py` is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli, files

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_output(parser: argparse.ArgumentParser, metavar: str, text: str, *files: str) -> None:
    """Add --output; `files` are what is written of it, see `cli.writes`."""
    cli.add(parser, '--output', text, required=True, metavar=metavar, writes=(*files,))


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        help: one line, without a full stop.
        run: does it and returns the exit status: 0 done, 1 checked and failed.
        add_arguments: adds its own arguments; --json and --debug are there already.
        takes_file: whether the first argument is one ONNX file, `args.file`; else the command adds its own.
    """

    help: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    takes_file: bool = True


def write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write what a command found to the file of --json, when there is one."""
    if args.json:
        files.write_json(args.json, content)
