"""Subcommands of `graph.py`, and the arguments that several of them have."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core import files as core_files

AddArgument = Callable[[argparse.ArgumentParser], object]
"""Function that adds one or several arguments to the parser of a subcommand."""
Run = Callable[[argparse.Namespace], int]
"""Function that runs a subcommand with its arguments, and returns the exit status."""


def argument(*words: Any, **settings: Any) -> AddArgument:
    """Return the function that adds an argument to a parser.

    `words` and `settings` are those of `core.cli.add`: up to three words, which are the names of the argument
    with its metavar in one text, its help and its default; and more arguments of argparse's `add_argument`.
    """
    return lambda parser: cli.add(parser, *words, **settings)


def output(metavar: str, text: str, *files: str) -> AddArgument:
    """Return the function that adds the required argument --output, with `text` as its help.

    `files` are the names of the files that the command writes, with '{}' for the value of --output; without
    any it is that value. Before the command runs, the command line is refused if one of them is also read.
    """
    return argument(f'--output {metavar}', text, required=True, writes=files)


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        help: one line, without a full stop.
        run: returns the exit status: 0 done, 1 checked and failed.
        arguments: functions that add its arguments besides the file of `takes_file`, --json and --debug.
        takes_file: whether the first argument is one ONNX file, `args.file`.
    """

    help: str
    run: Run
    arguments: tuple[AddArgument, ...]
    takes_file: bool


class Commands(dict[str, Command]):
    """The subcommands of a module by their names."""

    def add(
        self, name: str, help: str, *arguments: AddArgument, takes_file: bool = True
    ) -> Callable[[Run], Run]:
        """Return the decorator that makes a function the subcommand `name`.

        `help` is its line in the help, `arguments` add its arguments to a parser, and `takes_file` is whether
        its first argument is a file; see `Command`.
        """

        def command(run: Run) -> Run:
            self[name] = Command(help, run, arguments, takes_file)
            return run

        return command


def write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write `content`, the findings of a command, to the file `args.json`, unless that is None."""
    if args.json:
        core_files.write_json(args.json, content)
