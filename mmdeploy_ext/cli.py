"""What all command-line tools share: one-line errors, exit codes, consoles (only these need rich)."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmdeploy_ext.errors import Mm2OnnxError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console


CLOSED_PIPE = 141
"""Exit status when nobody reads what is printed: what a shell tells of a program that SIGPIPE ended."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line that begins with `error:`, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        print(f'error: {message} (see {self.prog} --help)', file=sys.stderr)
        raise SystemExit(2)


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which shows the traceback of an error."""
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin; call it before torch is imported.

    PyTorch and ONNX Runtime in one process, or other processes on the same cores, otherwise fight over
    them: a proof of the toy ATSS took 13.0 s spinning and 1.6 s sleeping on 2 busy cores. The benchmark
    does not call this.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def one_line(message: object) -> str:
    """Fold a message into one line."""
    return ' '.join(str(message).split())


def run(
    body: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, look where --json goes and run `body`; errors that users can act on become one line.

    Returns:
        The exit status: what `body` returns, or the error's own exit code.
    """
    args = parser.parse_args(argv)
    debug = getattr(args, 'debug', False)
    try:
        check_json(args)
        status = body(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return _closed_pipe()
    except Mm2OnnxError as error:
        if debug:
            traceback.print_exc()
        print(f'error: {one_line(error)}', file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        return 130
    except (OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        print(f'error: {one_line(error) or type(error).__name__}', file=sys.stderr)
        return 1


def _closed_pipe() -> int:
    """Leave without a word when `| head` has read enough; Python would complain at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return CLOSED_PIPE


def stdout() -> Console:
    """Return a console for tables on stdout; wide enough for them when the output is a file."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    return console


def stderr() -> Console:
    """Return a console for progress and logs on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def check_json(args: argparse.Namespace) -> None:
    """Refuse a file of --json that cannot be written, or that the command line also names elsewhere.

    Raises:
        UsageError: it is one of the files that are read or written; they are never written over.
    """
    from mmdeploy_ext.errors import UsageError
    from mmdeploy_ext.files import check_writable

    if not getattr(args, 'json', None):
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
