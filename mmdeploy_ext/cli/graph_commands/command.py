"""What a subcommand of `graph.py` is."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from mmdeploy_ext.core import cli, files

Adds = Callable[[argparse.ArgumentParser], object]
Runs = Callable[[argparse.Namespace], int]


def argument(*given: Any, **more: Any) -> Adds:
    """Return what adds an argument to a parser: `cli.add` of these."""
    return lambda parser: cli.add(parser, *given, **more)


def output(metavar: str, text: str, *files: str) -> Adds:
    """Return what adds --output; `files` are what is written of it, see `cli.writes`."""
    return argument(f'--output {metavar}', text, required=True, writes=files)


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        help: one line, without a full stop.
        run: does it and returns the exit status: 0 done, 1 checked and failed.
        arguments: of its own; --json and --debug are there already.
        takes_file: whether the first argument is one ONNX file, `args.file`; else the command adds its own.
    """

    help: str
    run: Runs
    arguments: tuple[Adds, ...]
    takes_file: bool


class Commands(dict[str, Command]):
    """The subcommands of a module by their names."""

    def add(self, name: str, help: str, *arguments: Adds, takes_file: bool = True) -> Callable[[Runs], Runs]:
        """Make the function below this decorator a subcommand; see `Command`."""

        def command(run: Runs) -> Runs:
            self[name] = Command(help, run, arguments, takes_file)
            return run

        return command


def write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write what a command found to the file of --json, when there is one."""
    if args.json:
        files.write_json(args.json, content)
