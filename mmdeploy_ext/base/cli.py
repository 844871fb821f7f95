"""Command-line tools: one-line errors, exit codes, consoles (only consoles need rich)."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from mmdeploy_ext.base.commands import CHECKOUT
from mmdeploy_ext.base.config import config_path
from mmdeploy_ext.base.errors import (
    COLOURS,
    AbsentPackageError,
    Mm2OnnxError,
    UsageError,
    did_you_mean,
    one_line,
    printable,
)
from mmdeploy_ext.base.files import RunFiles, check_writable, use_writable_cache, watched_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console


Item = TypeVar('Item')
Result = TypeVar('Result')
Arguments = ParamSpec('Arguments')
OUTPUT_SPELLINGS = ('--output', '--output-file')
"""Other spellings of --out, which the help does not show."""
ELSEWHERE = {
    '--threshold': '--score-thr',
    '--conf-thres': '--score-thr',
    '--imgsz': '--shape',
    '--weights': 'CHECKPOINT',
}
"""Options of other detectors' tools -> ours."""
EXTRAS = dict(
    matplotlib='draw', openvino='openvino', nncf='nncf', onnx='graph', onnx_ir='graph', onnxscript='graph',
    onnxslim='graph', jinja2='graph',
)  # fmt: skip
"""Package -> extra of this project that installs it."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with --debug and one-line errors (`error: ...`, exit status 2) that suggest similar words.

    Attributes:
        elsewhere: option of another tool -> advice.
        other_kinds: function from an option to advice, '' if no other kind of the command has it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.elsewhere: dict[str, str] = {}
        self.other_kinds: Callable[[str], str] = lambda option: ''
        self._output: argparse.Action | None = None
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def take_output_by_position(self, output: argparse.Action) -> None:
        """Take the value of `output` as last positional argument, too."""
        output.required, self._output = True, output

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [config_path(word) for word in (sys.argv[1:] if args is None else args)]
        output, spelled = self._output, {word.partition('=')[0] for word in words}
        if output is not None and not spelled & {'-h', '--help', '--out', *OUTPUT_SPELLINGS}:
            output.required, self._output = False, None
            position = self.add_argument(output.dest, type=output.type, metavar='--out')
            position.writes = ()  # `output` says it
        return super().parse_known_args(words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            options = _option_names(self, parsed)
            unknown = [word.partition('=')[0] for word in rest if word.startswith('--')]
            hints = ''.join(self._hint(word, options) for word in unknown)
            self.error(f'unrecognized arguments: {" ".join(rest)}{hints}')
        return parsed

    def _hint(self, option: str, options: Sequence[str]) -> str:
        advice = self.elsewhere.get(option) or self.other_kinds(option)
        if advice:
            return f'; {option} {advice}'
        usual = difflib.get_close_matches(option, ELSEWHERE, 1, 0.85)
        ours = ELSEWHERE[usual[0]] if usual else ''
        known = ours in options or ours.isupper()
        return f'; did you mean {ours}?' if known else did_you_mean(option, options)

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message, re.DOTALL):
            message += did_you_mean(choice[1], re.findall(r'[\w.-]+', choice[2]))
        print(printable(f'error: {message} (see {self.prog} --help)'), file=sys.stderr)
        raise SystemExit(2)


def _option_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    names = [name for action in parser._actions for name in action.option_strings if name.startswith('--')]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            sub_parser = action.choices.get(getattr(args, action.dest, None))
            names += _option_names(sub_parser, args) if sub_parser else []
    return names


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin; call it before torch is imported.

    A proof of the toy ATSS took 13.0 s spinning and 1.6 s sleeping on 2 busy cores. `OMP_WAIT_POLICY` of the
    environment overrides it.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def check_minimums(args: argparse.Namespace, **minimums: int) -> None:
    """Raise UsageError if an argument is NaN or below its minimum; None passes."""
    for name, minimum in minimums.items():
        value = getattr(args, name)
        if value is not None and not value >= minimum:
            raise UsageError(f'--{name.replace("_", "-")} {value:g}: expected {minimum} or more')


def run(
    body: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command-line tool and return its exit status.

    Errors that users can act on become one line on stderr. Outputs that are inputs of the same command line
    are refused first. Other errors of `body` are faults of this program and are raised.

    Exit status: of `body` or `Mm2OnnxError.exit_code`; 2 for a missing package; 130 for Ctrl-C; 0 where the
    reader of stdout has enough (`| head`); 1 for OSError, MemoryError and errors of the user's own code.
    """
    use_writable_cache()
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # of names in files
    try:
        parser = parser if isinstance(parser, argparse.ArgumentParser) else parser()
        args = parser.parse_args(argv)
        with watched_run() as run_files:
            check_files(run_files, parser, args)
            if getattr(args, 'json', None):
                check_writable(args.json)
            with _without_exit():
                status = body(args)
        if sys.stdout is not None:  # closed by the shell: `>&-`
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its exit
        return 0
    except KeyboardInterrupt:
        status, message = 130, 'interrupted'
    except Exception as error:
        status, message = _status_and_message(error)
        if '--debug' in (sys.argv if argv is None else argv):
            import traceback

            traceback.print_exc()
    if not (CHECKOUT / 'docs').is_dir():
        message = re.sub(r'\bdocs/[\w-]+\.md', r"\g<0> of mm2onnx's repository", message)
    print(wrapped(printable(COLOURS.sub('', f'error: {message}'))), file=sys.stderr)
    return status


@contextlib.contextmanager
def _without_exit() -> Iterator[None]:
    """UsageError if the user's code ends this process, also by `os._exit`: 0 would read as a proof."""
    process, leave = os.getpid(), os._exit

    def refuse(status: int) -> None:
        if status or os.getpid() != process:  # a forked one
            leave(status)
        raise SystemExit(status)

    os._exit = refuse
    try:
        yield
    except SystemExit as error:
        place = _place_in_users_code(error) or 'code that was read'
        raise UsageError(f'{place}: ends this process with status {error.code}; remove the exit') from error
    finally:
        os._exit = leave


def wrapped(message: str) -> str:
    """Break a message for a terminal, its first reason in front; a pipe gets one line."""
    if sys.stderr is None or not sys.stderr.isatty():
        return message
    import shutil
    import textwrap

    fill = functools.partial(
        textwrap.fill,
        width=shutil.get_terminal_size().columns,
        subsequent_indent='    ',
        break_long_words=False,
        break_on_hyphens=False,
    )
    first, *rest = message.split('; ')
    return '\n'.join([fill(first), *(fill(reason, initial_indent='  ') for reason in rest)])


def program(
    body: Callable[[argparse.Namespace], int], build_parser: Callable[[], argparse.ArgumentParser]
) -> Callable[[Sequence[str] | None], int]:
    """`main(argv=None)` of a tool, see `run`."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run(body, build_parser, argv)

    return main


def _status_and_message(error: Exception) -> tuple[int, str]:
    if isinstance(error, ModuleNotFoundError):
        return 2, _not_installed(error)
    if isinstance(error, (Mm2OnnxError, OSError, MemoryError)):
        status = error.exit_code if isinstance(error, Mm2OnnxError) else 1
        return status, one_line(error) or type(error).__name__
    if place := _place_in_users_code(error):
        return 1, f'{place}: {type(error).__name__}: {one_line(error)} (--debug shows the traceback)'
    raise error


def _place_in_users_code(error: BaseException) -> str:
    import traceback

    from mmdeploy_ext.base.source_code import is_ours, is_users_file

    places = [(Path(place.filename), place) for place in traceback.extract_tb(error.__traceback__)]
    ours = [index for index, (path, _) in enumerate(places) if is_ours(path)]
    inside = places[ours[0] :] if ours else []
    users = [place for path, place in inside if path.is_file() and is_users_file(path)]
    return f'{users[-1].filename}:{users[-1].lineno}, in {users[-1].name}' if users else ''


def _not_installed(error: ModuleNotFoundError) -> str:
    name = (error.name or '').split('.')[0]
    if isinstance(error, AbsentPackageError):
        return one_line(error)
    if name in ('', 'mmdeploy_ext'):
        raise error
    if place := _place_in_users_code(error):
        from mmdeploy_ext.base.missing_packages import not_installed

        return f'{place} imports {error.name}: {not_installed(name, place.partition(":")[0])}'
    if name in sys.modules and error.name != name:
        package = sys.modules[name]
        return f'{name} {getattr(package, "__version__", "")} has no module {error.name}'
    if extra := EXTRAS.get(name):
        return (
            f'{name} is not installed for {sys.executable}; it comes with an extra: '
            f"pip install 'mm2onnx[{extra}]', or '.[{extra}]' in a checkout"
        )
    return (
        f'{name} is not installed for {sys.executable}; activate the environment that `make env` makes '
        f'(source .venv/bin/activate), or install it there'
    )


def stdout() -> Console:
    """Console of rich on stdout, 150 columns wide unless it is a terminal."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            """Leave the error to `run`, whose status is 0; rich's is 1."""
            raise BrokenPipeError

    console = Stdout()
    return console if console.is_terminal else Stdout(width=150)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def say(console: Console, text: str, word: str = '', colour: str = '') -> None:
    """Print one unwrapped line; `word`, in a style of rich such as 'bold red', comes first."""
    if word:
        console.print(f'[{colour}]{word}[/{colour}] ', end='')
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def tracked(items: Iterable[Item], total: int | None, title: str, visible: bool = True) -> Iterator[Item]:
    """Yield the items with a progress bar on stderr, if it is a terminal and rich is installed."""
    try:
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    except ModuleNotFoundError:  # numpy alone judges a kit
        yield from items
        return
    console = stderr()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        yield from bar.track(items, total=total, description=title)


@contextlib.contextmanager
def progress(title: str, total: int | None = None, *columns: Any) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr; yield its update function (`completed`, `total`, `description`)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    all_columns = TextColumn('{task.description}'), BarColumn(), *columns, TimeElapsedColumn()
    console = stderr()
    with Progress(*all_columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield functools.partial(bar.update, bar.add_task(title, total=total))


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Silence Python's stdout and all logs during the body."""
    import io
    import logging

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def add(parser: Any, names: str, text: str = '', default: Any = None, **settings: Any) -> argparse.Action:
    """Add an argument and return it.

    '--max-iter N' takes a value, '--size H W' two, '--images PATH...' one or more; '--all' is a flag. The
    default gives the type. `settings` go to `add_argument`, except `writes`, see the function, and `hidden`,
    spellings that the help does not show. '--out' is an output and has `OUTPUT_SPELLINGS`.
    """
    words = names.split()
    flags = [word for word in words if word.startswith('-')] or words[:1]
    titles = tuple(word.removesuffix('...') for word in words[len(flags) :])
    is_output = flags[0] == '--out'
    files = settings.pop('writes', '{}' if is_output else None)
    hidden = (*(OUTPUT_SPELLINGS if is_output else ()), *settings.pop('hidden', ()))
    if titles:
        settings['metavar'] = titles if len(titles) > 1 else titles[0]
    elif flags[0].startswith('-') and not settings.keys() - {'dest'}:
        settings['action'] = 'store_true'
    if names.endswith('...') or len(titles) > 1:
        settings.setdefault('nargs', '+' if names.endswith('...') else len(titles))
    if default is not None:
        settings['default'] = default
    if isinstance(default, int | float | Path):
        settings.setdefault('type', Path if isinstance(default, Path) else type(default))
    action = parser.add_argument(*flags, help=text or None, **settings)
    for spelling in hidden:
        parser._option_string_actions.setdefault(spelling, action)
    return action if files is None else writes(action, *([files] if isinstance(files, str) else files))


def option(names: str, text: str, default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Declare a field of a request: a parameter of a function, see `takes`, and an argument, see `add`.

    Options are keywords of the function, unless `kw_only` is False.
    """
    kw_only = settings.pop('kw_only', names.startswith('-'))
    metadata = dict(names=names, text=text, settings=settings)
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


def add_fields(parser: Any, request: type, names: str, **settings: Any) -> None:
    """Add fields of a request, see `option`; `settings` override the declared ones."""
    for name in names.split():
        field = request.__dataclass_fields__[name]
        given = dict(field.metadata['settings'], **settings)
        words, default = field.metadata['names'], given.pop('default', field.default)
        text = given.pop('text', field.metadata['text'])
        if words.startswith('-'):
            given['dest'] = name
        if default is True:
            given['action'] = 'store_false'
        if default == '' or isinstance(default, bool) or default is dataclasses.MISSING:
            default = None
        add(parser, words, text, default, **given)


def given_of(request: type, args: argparse.Namespace) -> dict[str, Any]:
    """Given options of a request in `args`, by name."""
    names = request.__dataclass_fields__.keys() & vars(args).keys()
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def takes(request: Callable[Arguments, Item], rest: str = '') -> Callable[..., Callable[Arguments, Result]]:
    """Let a function of a request have the request's options as its parameters.

    Other keywords are entries of the field `rest`.
    """

    def decorate(function: Callable[[Item], Result]) -> Callable[Arguments, Result]:
        fields = {field.name: field for field in dataclasses.fields(request) if field.metadata}

        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Result:
            others = {name: given.pop(name) for name in given.keys() - fields.keys()} if rest else {}
            for name, value in given.items():
                is_list = name in fields and fields[name].metadata['names'].endswith('...')
                if is_list and isinstance(value, str | Path):  # each letter would be an entry
                    raise UsageError(f'{name}={str(value)!r}: expected a list, [{str(value)!r}]')
            return function(request(*args, **given, **({rest: others} if rest else {})))

        signature = inspect.signature(request)
        parameters = [one for one in signature.parameters.values() if one.name in fields]
        if rest:
            parameters.append(inspect.Parameter(rest, inspect.Parameter.VAR_KEYWORD))
        returned = inspect.signature(function).return_annotation
        called.__signature__ = signature.replace(parameters=parameters, return_annotation=returned)
        texts = (
            f'    {name}: {field.metadata["text"].replace("%(default)s", str(field.default))}.'
            for name, field in fields.items()
        )
        called.__doc__ = '\n'.join([inspect.cleandoc(function.__doc__), '', 'Args:', *texts])
        return called

    return decorate


def adder(parser: Any) -> Callable[..., argparse.Action]:
    """Bind `add` to a parser or argument group."""
    return functools.partial(add, parser)


def writes(action: argparse.Action, *files: str) -> argparse.Action:
    """Mark an argument as naming outputs, for `check_files`.

    `files` have '{}' for the value of the argument; '' is a folder that is checked later.
    """
    action.writes = files or ('{}',)
    return action


def check_files(run: RunFiles, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Register the files of a command line; UsageError if an output is also an input."""
    for action in _actions(parser, args):
        value = getattr(args, action.dest, None)
        files = getattr(action, 'writes', ('{}',) if action.dest == 'json' else None)
        option = action.option_strings[0] if action.option_strings else action.dest
        if files is None:
            title = 'input' if action.dest in ('file', 'files', 'in_file') else action.dest.replace('_', ' ')
            name = f'what {option} names' if action.option_strings else f'the {title}'
            words = _words(value)
            run.reads(name, words)
            graphs = [file for word in words for file in Path(word).glob('*.onnx')]
            run.reads(f'a graph of {name}', graphs)
            run.reads(f'the weights of {name}', (f'{file}.data' for file in (*words, *graphs)))
        elif value is not None:
            paths = [file.format(value) for file in files if file] if str(value).strip() else ['']
            run.writes(option, paths)


def _actions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from _actions(action.choices[getattr(args, action.dest)], args)
        else:
            yield action


def _words(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    return [value] if isinstance(value, str | Path) and str(value) else []
