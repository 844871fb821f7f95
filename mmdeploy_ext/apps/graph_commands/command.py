"""What a subcommand of `graph.py` is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: for a command that takes a file alone."""


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
    add_arguments: Callable[[argparse.ArgumentParser], None] = no_arguments
    takes_file: bool = True


def check_json(args: argparse.Namespace) -> None:
    """Refuse a file of --json that cannot be written, or that the command line also names elsewhere.

    Raises:
        UsageError: it is one of the files that are read or written; they are never written over.
    """
    from mmdeploy_ext.errors import UsageError
    from mmdeploy_ext.files import check_writable

    if not args.json:
        return
    check_writable(args.json)
    others = [word for key, value in vars(args).items() if key != 'json' for word in _words(value)]
    if Path(args.json).resolve() in {Path(word).resolve() for word in others}:
        raise UsageError(f'--json {args.json}: is named as another file of this command; give another name')


def _words(value: Any) -> list[str]:
    """Return the strings of an argument, and their words: 'differs other.onnx' names a file."""
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    return [value, *value.split()] if isinstance(value, str) else []


def write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write what a command found to the file of --json, when there is one."""
    from mmdeploy_ext import files

    if args.json:
        files.write_json(args.json, content)
