"""What all command-line tools share: one-line errors, exit codes, consoles (only these need rich)."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import logging
import os
import re
import select
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from mmdeploy_ext.core.errors import (
    AbsentPackageError,
    Mm2OnnxError,
    UsageError,
    did_you_mean,
    one_line,
    printable,
)
from mmdeploy_ext.core.files import RunFiles, check_writable, watched_run
from mmdeploy_ext.core.source_code import is_ours, is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console


Item = TypeVar('Item')
CLOSED_PIPE = 141
"""Exit status when stdout is closed: what a shell reports for a program that SIGPIPE ended."""
ONE_FILE = ('config', 'checkpoint')
"""Arguments that name a file; a folder of that name is not what they read."""
EXTRAS = dict(matplotlib='draw', openvino='openvino', nncf='nncf')
"""Package that few tools need -> the extra of this project that installs it."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line that begins with `error:`, exit status 2, with similar words."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments as that of `argparse` does; of unknown options the line names similar ones."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            options = _option_names(self, parsed)
            unknown = [word.partition('=')[0] for word in rest if word.startswith('--')]
            hints = ''.join(did_you_mean(word, options) for word in unknown)
            self.error(f'unrecognized arguments: {" ".join(rest)}{hints}')
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print `error: MESSAGE (see PROG --help)` on stderr; SystemExit with status 2.

        Of a word that is none of the choices the line names those that resemble it.
        """
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message, re.DOTALL):
            message += did_you_mean(choice[1], re.findall(r'[\w.-]+', choice[2]))
        print(printable(f'error: {message} (see {self.prog} --help)'), file=sys.stderr)
        raise SystemExit(2)


def _option_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Return the long options of a parser, and of the parser of each sub-command that was typed."""
    names = [name for action in parser._actions for name in action.option_strings if name.startswith('--')]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            sub_parser = action.choices.get(getattr(args, action.dest, None))
            names += _option_names(sub_parser, args) if sub_parser else []
    return names


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--debug`, which lets `run` print the traceback of an error before its line."""
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the environment has `OMP_WAIT_POLICY`.

    It has to be called before torch is imported.

    PyTorch and ONNX Runtime in one process, or other processes on the same cores, otherwise fight over
    them: a proof of the toy ATSS took 13.0 s spinning and 1.6 s sleeping on 2 busy cores. The benchmark
    does not call this.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def check_minimums(args: argparse.Namespace, **minimums: int) -> None:
    """Refuse numbers that are smaller than the minimum of their argument, and NaN; None passes.

    Args:
        args: the parsed arguments.
        minimums: name of an argument -> the smallest value that it may have.

    Raises:
        UsageError: a number is too small, or NaN.
    """
    for name, minimum in minimums.items():
        value = getattr(args, name)
        if value is not None and not value >= minimum:
            raise UsageError(f'--{name.replace("_", "-")} {value:g}: expected {minimum} or more')


def run(
    body: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command-line tool; errors that users can act on become one line on stderr.

    A command line on which an output is one of the inputs, or `--json` cannot be written, is refused before
    `body` is called.

    Args:
        body: the work of the tool; takes the parsed arguments and returns the exit status.
        parser: parser of the command line, or a function that makes it and may raise what `body` may.
        argv: words of the command line without the program; None means those of `sys.argv`.

    Returns:
        The exit status: what `body` returns, or that of the error: its `exit_code` (`Mm2OnnxError`), 2 of a
        package or module that cannot be found, 130 of Ctrl-C, 1 of an OSError or MemoryError, also if
        stdout cannot be written, such as to a full disk, `CLOSED_PIPE` if its reader has closed it: the body
        ends at the next line that it prints.

    Raises:
        SystemExit: `--help`, or an option that the parser refuses.
        Exception: any other error of `body`, which is a fault of the program. One that the user's own code
            raised, such as the `forward` of a model, is one line, too, with exit status 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # what an encoding lacks is written as an escape
            stream.reconfigure(errors='backslashreplace')
    try:
        try:
            return _run(body, parser, argv)
        finally:
            if sys.stdout is not None:  # as in a program started with a closed one
                sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # a stream without a file
            # else Python tries to write the rest at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return CLOSED_PIPE
        print(f'error: stdout cannot be written: {one_line(error.strerror or error)}', file=sys.stderr)
        return 1


def _is_unread(stream: TextIO) -> bool:
    """Return whether a stream is a pipe that its reader has closed."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(
    body: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None,
) -> int:
    """Return the exit status; BrokenPipeError: nobody reads stdout."""
    args = argparse.Namespace(debug='--debug' in (sys.argv if argv is None else argv))
    try:
        parser = parser if isinstance(parser, argparse.ArgumentParser) else parser()
        args = parser.parse_args(argv)
        with watched_run() as run_files:
            check_files(run_files, parser, args)
            if getattr(args, 'json', None):
                check_writable(args.json)
            return body(args)
    except KeyboardInterrupt:
        status, message = 130, 'interrupted'
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            raise
        status, message = _status_and_message(error)
        if getattr(args, 'debug', False):
            traceback.print_exc()
    print(printable(f'error: {message}'), file=sys.stderr)
    return status


def _status_and_message(error: Exception) -> tuple[int, str]:
    """Return the exit status and the line of an error that users can act on; others are raised again."""
    if isinstance(error, ModuleNotFoundError):
        return 2, _not_installed(error)
    if isinstance(error, (Mm2OnnxError, OSError, MemoryError)):
        message = one_line(error) or type(error).__name__
        if isinstance(error, BrokenPipeError):  # of another pipe than stdout
            message += ': a process that this one was writing to has ended; --debug shows where'
        return error.exit_code if isinstance(error, Mm2OnnxError) else 1, message
    if place := _place_in_users_code(error):
        return 1, f'{place}: {type(error).__name__}: {one_line(error)} (--debug shows the traceback)'
    raise error


def _place_in_users_code(error: Exception) -> str:
    """Return the innermost line of the user's own code, such as a `forward`, on the way of an error.

    The text is 'FILE:LINE, in FUNCTION'; '' if this package called no such code.
    """
    places = traceback.extract_tb(error.__traceback__)
    ours = [index for index, place in enumerate(places) if is_ours(Path(place.filename))]
    inside = places[ours[0] :] if ours else []
    users = [place for place in inside if _is_file_of_users(Path(place.filename))]
    return f'{users[-1].filename}:{users[-1].lineno}, in {users[-1].name}' if users else ''


def _is_file_of_users(path: Path) -> bool:
    return path.is_file() and is_users_file(path)


def _not_installed(error: ModuleNotFoundError) -> str:
    """Return how to install a missing package; a missing module of ours is a bug, which is raised again."""
    if isinstance(error, AbsentPackageError):
        return one_line(error)
    name = (error.name or '').split('.')[0]
    if name in ('', 'mmdeploy_ext'):
        raise error
    if name in sys.modules and error.name != name:
        package = sys.modules[name]
        version = getattr(package, '__version__', 'of an unknown version')
        return f'{name} {version} of {Path(package.__file__ or "").parent} has no module {error.name}'
    importer = _importing_line(error)
    if error.name != name and (spec := importlib.util.find_spec(name)) is not None:
        folder = Path(spec.origin or '').parent
        return (
            f'{importer or name} imports {error.name}, which {folder} has not; a checkout may need its own '
            f'installation to write it, such as pip install -e .'
        )
    if importer:
        return f'{importer} imports {name}, which is not installed for {sys.executable}; install it there'
    if extra := EXTRAS.get(name):
        return (
            f'{name} is not installed for {sys.executable}; it comes with an extra: '
            f"pip install 'mm2onnx[{extra}]', or '.[{extra}]' in a checkout"
        )
    return (
        f'{name} is not installed for {sys.executable}; activate the environment that `make env` makes '
        f'(source .venv/bin/activate), or install it there'
    )


def _importing_line(error: ModuleNotFoundError) -> str:
    """Return file and line of the import that failed, if the file is a user's; '' otherwise."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename[:1] != '<']
    if not frames or not (frames[-1].line or '').startswith(('import ', 'from ')):
        return ''
    path = Path(frames[-1].filename).resolve()
    return f'{path}:{frames[-1].lineno}' if _is_file_of_users(path) else ''


def stdout() -> Console:
    """Return a console of rich for tables on stdout; 150 columns wide if that is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)


def stderr() -> Console:
    """Return a console of rich for progress and logs on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def say(console: Console, text: str, word: str = '', colour: str = '') -> None:
    """Print `text` as one line, however long; before it `word` in a `colour` of rich, such as 'bold red'.

    `console` is one of rich. With '' as the word the text stands alone; a word needs a colour. `text` is
    printed as it is, but for the escapes of `printable`; `word` may have markup.
    """
    if word:
        console.print(f'[{colour}]{word}[/{colour}] ', end='')
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def tracked(items: Iterable[Item], total: int | None, title: str, visible: bool = True) -> Iterator[Item]:
    """Yield the items, with a bar on stderr if it is a terminal: how many are done, and the time left.

    `total` is None if the number of items is unknown; `title` stands before the bar. No bar is shown unless
    `visible`.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = stderr()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        yield from bar.track(items, total=total, description=title)


@contextlib.contextmanager
def progress(title: str, total: int | None = None, *columns: Any) -> Iterator[Callable[..., None]]:
    """Yield a function that updates a bar on stderr by its keyword arguments.

    These are `completed`, `total` and `description`. There is a bar if stderr is a terminal; `title` is the
    first description, `columns`, of `rich.progress`, stand between the bar and the time. `total` is the
    number of steps, None if it is not known.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    all_columns = TextColumn('{task.description}'), BarColumn(), *columns, TimeElapsedColumn()
    console = stderr()
    with Progress(*all_columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield functools.partial(bar.update, bar.add_task(title, total=total))


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Keep what Python code prints on stdout, and all log lines, off the console during the body."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def add(parser: Any, names: str, text: str = '', default: Any = None, **settings: Any) -> argparse.Action:
    """Add an argument and return it.

    '--max-iter N' has a value, '--size H W' two, '--images PATH...' one or more, '--all' is a flag; without a
    metavar but with settings, '--seed' has what these say.

    Args:
        parser: an `ArgumentParser`, or an argument group of one.
        names: names of an option or of a positional argument; the metavar for the help comes last.
        text: help.
        default: value if the argument is left out; a number or a path also gives the values their type. A
            flag takes none: it is False then.
        settings: further arguments of `add_argument`; and `writes`, the `files` of the function `writes`, a
            text or a list of texts.
    """
    words = names.split()
    flags = [word for word in words if word.startswith('-')] or words[:1]
    titles = tuple(word.removesuffix('...') for word in words[len(flags) :])
    files = settings.pop('writes', None)
    if titles:
        settings['metavar'] = titles if len(titles) > 1 else titles[0]
    elif flags[0].startswith('-') and not settings:
        settings['action'] = 'store_true'
    if names.endswith('...') or len(titles) > 1:
        settings['nargs'] = '+' if names.endswith('...') else len(titles)
    if default is not None:
        settings['default'] = default
    if isinstance(default, int | float | Path):
        settings.setdefault('type', Path if isinstance(default, Path) else type(default))
    action = parser.add_argument(*flags, help=text or None, **settings)
    return action if files is None else writes(action, *([files] if isinstance(files, str) else files))


def adder(parser: Any) -> Callable[..., argparse.Action]:
    """Return the function `add`, whose first argument is this parser or argument group."""
    return functools.partial(add, parser)


def writes(action: argparse.Action, *files: str) -> argparse.Action:
    """Mark an argument as one that names an output, not an input, and return it; `--json` needs no mark.

    `run` checks outputs after parsing, see `check_files`; the parser does not.

    Args:
        action: returned by `add_argument`.
        files: names of the outputs, '{}' for the value of the argument; by default the value itself. '' marks
            a folder whose files are checked later, when they are known.
    """
    action.writes = files or ('{}',)
    return action


def check_files(run: RunFiles, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a command line on which an output is one of its other files, or has no name.

    Args:
        run: files of this run; those of the command line are registered in it.
        parser: parser of the command line; `writes` has marked its outputs.
        args: the parsed arguments.

    Raises:
        UsageError: there is such an output.
    """
    for action in _actions(parser, args):
        value = getattr(args, action.dest, None)
        files = getattr(action, 'writes', ('{}',) if action.dest == 'json' else None)
        option = action.option_strings[-1] if action.option_strings else action.dest
        if files is None:
            title = 'input' if action.dest in ('file', 'files', 'in_file') else action.dest.replace('_', ' ')
            name = f'what {option} names' if action.option_strings else f'the {title}'
            words = [word for word in _words(value) if action.dest not in ONE_FILE or not Path(word).is_dir()]
            run.reads(name, words)
        elif value is not None:
            paths = [file.format(value) for file in files if file] if str(value).strip() else ['']
            run.writes(option, paths)


def _actions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser, those of the chosen subcommand too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from _actions(action.choices[getattr(args, action.dest)], args)
        else:
            yield action


def _words(value: Any) -> list[str]:
    """Return the strings of an argument, and their words: 'differs other.onnx' names a file."""
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    if isinstance(value, str):
        return [value, *value.split()] if value else []  # '' is no file, and Path('') the working directory
    return [value] if isinstance(value, Path) else []
