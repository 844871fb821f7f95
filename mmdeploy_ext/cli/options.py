"""Options that several tools share, named as in mmdet."""

from __future__ import annotations

import argparse
import ast
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.pixels import parse_shape
from mmdeploy_ext.spec.options import Option, check_opset
from mmdeploy_ext.spec.registry import detector_options

if TYPE_CHECKING:
    from mmdeploy_ext.families.base import Family

MODEL = 'config checkpoint cfg_options device'
"""Options of `ModelRequest` that most commands have."""
ENGINE = 'strict frames engine providers threads inference_precision'
"""Options of `ProofRequest` about the run of the file."""
OF_MODULES = 'inputs rtol state rows seed generate'
"""Options of `ModuleRequest` of prove-module and of kit --module."""
Request = TypeVar('Request')


DETECTOR, PARTS, BACKBONE = (
    'whole detectors',
    'parts (export --parts)',
    'sparse backbones (export --backbone)',
)
"""What a command is about; its options depend on it."""
OPTION_OF = {PARTS: '--parts', BACKBONE: '--backbone'}


def subject_by_option(words: Sequence[str], subjects: Sequence[str]) -> str:
    """The subject whose option is among the words of a command."""
    options = {word.partition('=')[0] for word in words}
    return next((subject for subject in subjects if OPTION_OF[subject] in options), DETECTOR)


def take_file_first(args: argparse.Namespace) -> None:
    """Take FILE CONFIG CHECKPOINT, as in kit and precision of 0.3, and FILE alone."""
    first = args.config
    if first and (Path(first).suffix == '.onnx' or Path(first).is_dir()):
        args.config, args.checkpoint, args.onnx_file = args.checkpoint, args.onnx_file, first


def parser_of(
    subject: str, descriptions: Mapping[str, str], build: Callable[[str], cli.ArgumentParser]
) -> cli.ArgumentParser:
    """Parser without options for one of the subjects of `descriptions`.

    Its error about an option of another subject, of which `build` makes the parser, says whose it is.
    """

    def owner(option: str) -> str:
        others = [other for other in descriptions if other != subject]
        owners = [other for other in others if option in build(other)._option_string_actions]
        return f'is an option of {" and ".join(owners)}, not of {subject}' if owners else ''

    parser = cli.ArgumentParser(description=descriptions[subject])
    parser.set_defaults(subject=subject)
    parser.other_kinds = owner
    return parser


def program(
    run: Callable[[argparse.Namespace], int],
    build_parser: Callable[[str], argparse.ArgumentParser],
    chosen_by: Callable[[Sequence[str]], str],
) -> Callable[[Sequence[str] | None], int]:
    """`main(argv=None)` of a command whose words choose its subject, see `cli.run`."""

    def main(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[1:] if argv is None else list(argv)
        asks_for_help = bool(
            {'-h', '--help'}.intersection(words)
        )  # in `--parts --help`, --parts has no value
        parser = functools.partial(build_parser, chosen_by(words))
        return cli.run(run, parser, ['--help'] if asks_for_help else words)

    return main


def parse_cfg_options(pairs: list[str] | None, option: str = '--cfg-options') -> dict[str, Any]:
    """Parse key=value by mmcv's rules: lists as a,b or [a,b], tuples as (a,b), nested `[(a,b),(c,d)]`."""
    options: dict[str, Any] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition('=')
        if not separator or not key:
            raise UsageError(f'{option} {pair}: expected key=value')
        try:
            if value.startswith('{'):
                options[key] = ast.literal_eval(value)
            else:
                from mmdeploy_ext.upstream import compat

                compat.apply()
                from mmcv import DictAction  # without a pair mmcv is not imported

                options[key] = DictAction._parse_iterable(value)
        except (AssertionError, RecursionError, TypeError, ValueError, SyntaxError) as error:
            raise UsageError(
                f'{option} {pair}: cannot be read; expected a number, a word, a,b or "[(a,b),(c,d)]"'
            ) from error
    return options


def request_of(request: type[Request], args: argparse.Namespace, **others: Any) -> Request:
    """Return the request of a model with the given options of `args`, and others."""
    given = cli.given_of(request, args) | dict(cfg_options=parse_cfg_options(args.cfg_options))
    return request(**{**given, **others})


def parse_state(words: Sequence[str] | None) -> dict[str, str]:
    """input -> output of --state `INPUT=OUTPUT`."""
    pairs = {}
    for word in words or ():
        name, separator, output = word.partition('=')
        if not separator or not name or not output:
            raise UsageError(f'--state {word}: expected INPUT=OUTPUT, names of the file')
        if name in pairs:
            raise UsageError(f'--state {word}: input {name} already gets {pairs[name]}; name each input once')
        pairs[name] = output
    return pairs


def proof_words(args: argparse.Namespace) -> list[str]:
    """The options that a later proof needs again, as words."""
    words = ['--library', args.library] if args.library else []
    for name in ('mean', 'std', 'ignored_keys', 'cfg_options'):
        if values := getattr(args, name, None):
            words += [ModelRequest.__dataclass_fields__[name].metadata['names'].split()[0], *map(str, values)]
    return words


def parser_for(build: Callable[[], argparse.ArgumentParser], words: Sequence[str]) -> argparse.ArgumentParser:
    """Parser with the options of a family that the command line's config imports.

    `build` is called again after the config has registered its family.
    """
    parser = build()
    options = [word.split('=')[0] for word in words if word.startswith('--')]
    config = next((word for word in words if word.endswith('.py') and Path(word).is_file()), '')
    if config and any(option not in parser._option_string_actions for option in options):
        from mmdeploy_ext.base.config import load_config
        from mmdeploy_ext.upstream import compat

        cli.wait_passively()
        compat.apply()
        load_config(config)
        parser = build()
    return parser


def add_declared(parser: argparse.ArgumentParser, declared: Iterable[Option]) -> None:
    groups: dict[str, Any] = {'': parser}
    for option in (option for option in declared if option.typed):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        if isinstance(option.default, bool):
            on_off = argparse.BooleanOptionalAction
            settings = dict(action=on_off) if option.default else dict(action='store_const', const=True)
        elif isinstance(option.default, tuple):
            settings = dict(nargs='+', metavar=option.metavar)
        elif option.choices:
            settings = dict(choices=(*filter(None, option.choices), *option.refused))
        else:
            nargs = '+' if option.pair else None
            settings = dict(type=type(option.default), metavar=option.metavar, nargs=nargs)
        groups[option.group].add_argument(
            option.typed, dest=option.name, help=option.help, default=None, **settings
        )


def option_values(args: argparse.Namespace, declared: Iterable[Option]) -> dict[str, Any]:
    """Given declared options by name."""
    values = {option.name: getattr(args, option.name, None) for option in declared}
    return {name: value for name, value in values.items() if value is not None}


def graph_values(args: argparse.Namespace) -> dict[str, Any]:
    """Given options of the graphs of detectors, by name."""
    values = option_values(args, detector_options())
    if args.skip_postprocess:
        if values.get('form', 'raw') != 'raw':
            raise UsageError(
                f'--skip-postprocess means --postprocess raw, got --postprocess {values["form"]} too'
            )
        values['form'] = 'raw'
    if values.get('dynamic') and values.get('dynamic_batch'):
        raise UsageError('--dynamic-batch fixes height and width, --dynamic-export does not: pass only one')
    if 'opset' in values:
        check_opset(values['opset'], values.get('exporter', 'torchscript'))
    if 'height' in values:
        values['height'], values['width'] = parse_shape(values['height'])
    return values


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(
        parser,
        '--report DIR',
        'write DIR/report.html, one self-contained page, and DIR/verdict.json',
        writes=('{}/report.html', '{}/verdict.json', '{}/detections.png'),
    )
    cli.add(parser, '--json FILE', 'write the verdict as JSON')


def refuse_of_kind(
    args: argparse.Namespace, parser: argparse.ArgumentParser, command: str, family: Family
) -> None:
    """Raise UsageError for options of a command that models of a family do not take."""
    from mmdeploy_ext.bench.kinds import kind_of

    for name, reason in kind_of(family).refused(command, family).items():
        refuse_options(args, parser, [name], reason)


def refuse_options(
    args: argparse.Namespace, parser: argparse.ArgumentParser, names: Iterable[str], reason: str
) -> None:
    """Raise UsageError, with `reason`, for options that are not at their default."""
    for name in names:
        value = getattr(args, name, None)
        if value != parser.get_default(name):
            action = next(action for action in parser._actions if action.dest == name)
            options = action.option_strings
            if isinstance(action, argparse.BooleanOptionalAction):
                options = [option for option in options if option.startswith('--no-') is not value]
            raise UsageError(f'{"/".join(options) or value}: {reason}')
