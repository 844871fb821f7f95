"""Subcommands of `graph.py`, and the arguments that several of them have."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base import files as core_files

AddArgument = Callable[[argparse.ArgumentParser], object]
Run = Callable[[argparse.Namespace], int]


def argument(*words: Any, **settings: Any) -> AddArgument:
    return lambda parser: cli.add(parser, *words, **settings)


def output(metavar: str, text: str, *files: str) -> AddArgument:
    """Required argument --out, with `text` as its help."""
    return lambda parser: cli.add(parser, f'--out {metavar}', text, required=True, writes=files or '{}')


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
    def add(
        self, name: str, help: str, *arguments: AddArgument, takes_file: bool = True
    ) -> Callable[[Run], Run]:
        """Decorator that makes a function the subcommand `name`."""

        def command(run: Run) -> Run:
            self[name] = Command(help, run, arguments, takes_file)
            return run

        return command


def write_json(args: argparse.Namespace, content: dict[str, Any]) -> None:
    if args.json:
        core_files.write_json(args.json, content)
