"""Options that several tools share, with mmdet's names and meaning. Imports neither torch nor mmcv."""

import argparse
import ast
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.precision import PRECISIONS
from mmdeploy_ext.contract.registry import detector_options
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import engine_settings, file_engines

CFG_OPTIONS_HELP = (
    'override the config: key=value pairs, nested keys with dots, e.g. model.test_cfg.score_thr=0.3'
)


def parse_cfg_options(pairs: list[str] | None, option: str = '--cfg-options') -> dict[str, Any]:
    """Parse key=value pairs with mmcv's own rules: lists as a,b or [a,b], nested `[(a,b),(c,d)]`.

    Raises:
        UsageError: a pair without '=', or a value that mmcv cannot read.
    """
    options: dict[str, Any] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition('=')
        if not separator or not key:
            raise UsageError(f'{option} {pair}: expected key=value')
        try:
            options[key] = _value(value)
        except (AssertionError, RecursionError, ValueError, SyntaxError) as error:
            raise UsageError(
                f'{option} {pair}: cannot be read; expected a number, a word, a,b or "[(a,b),(c,d)]"'
            ) from error
    return options


def _value(text: str) -> Any:
    """Read one value as mmcv does; a dict literal, which mmcv would split at its commas, as Python does."""
    from mmcv import DictAction

    return ast.literal_eval(text) if text.startswith('{') else DictAction._parse_iterable(text)


def add_model_arguments(
    parser: argparse.ArgumentParser, device: str = 'cpu', needs_checkpoint: bool = True
) -> None:
    """Add CONFIG, CHECKPOINT, --cfg-options and --device with its default."""
    add = cli.adder(parser)
    add('config', 'config file')
    add('checkpoint', 'checkpoint file', nargs=None if needs_checkpoint else '?')
    add('--cfg-options KEY=VALUE...', CFG_OPTIONS_HELP)
    add('--device DEVICE', f"where PyTorch runs: 'cpu', 'cuda', 'cuda:1' (default: {device})", device)


def add_normalisation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --mean and --std."""
    cli.add(parser, '--mean MEAN', 'per-channel mean (default: from the config)', type=float, nargs=3)
    cli.add(
        parser, '--std STD', 'per-channel standard deviation (default: from the config)', type=float, nargs=3
    )


def check_normalisation(args: argparse.Namespace) -> None:
    """Refuse --mean and --std that are not finite, and standard deviations that are not positive."""
    for name in ('mean', 'std'):
        given = getattr(args, name)
        if given and not all(math.isfinite(value) and (value > 0 or name == 'mean') for value in given):
            kind = 'finite' if name == 'mean' else 'positive'
            raise UsageError(f'--{name} {" ".join(map(str, given))}: expected three {kind} numbers')


def given_words(args: argparse.Namespace) -> list[str]:
    """Return the options that a later proof needs again, as words: --mean, --std and --cfg-options."""
    words: list[str] = []
    for name in ('mean', 'std', 'cfg_options'):
        if values := getattr(args, name, None):
            words += [f'--{name.replace("_", "-")}', *map(str, values)]
    return words


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen about the graphs of detectors; None where it was not given."""
    add_declared(parser, detector_options())
    cli.add(parser, '--skip-postprocess', 'the same as --postprocess raw')


def parser_for(
    build: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None
) -> argparse.ArgumentParser:
    """Return a parser; it has the options of a family that the config of the command line imports, too.

    The config is read before the command line is parsed only where that has an option that no other family
    has.
    """
    parser, words = build(), sys.argv[1:] if argv is None else argv
    options = [word.split('=')[0] for word in words if word.startswith('--')]
    config = next((word for word in words if word.endswith('.py') and Path(word).is_file()), '')
    if config and any(option not in parser._option_string_actions for option in options):
        from mmdeploy_ext import compat
        from mmdeploy_ext.core.config import load_config

        cli.wait_passively()
        compat.apply()
        load_config(config)
        parser = build()
    return parser


def add_declared(parser: argparse.ArgumentParser, declared: Iterable[Option]) -> None:
    """Add declared options, each to the group of arguments that it names."""
    groups: dict[str, Any] = {'': parser}
    for option in declared:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        if option.typed:
            option.add_to(groups[option.group])


def given_values(args: argparse.Namespace, declared: Iterable[Option]) -> dict[str, Any]:
    """Return name -> value of the declared options that were given."""
    values = {one.name: getattr(args, one.name, None) for one in declared}
    return {name: value for name, value in values.items() if value is not None}


def graph_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return name -> value of what `add_graph_arguments` was given; refuses what contradicts each other."""
    from mmdeploy_ext.exporting.exporter import check_opset

    given = given_values(args, detector_options())
    if args.skip_postprocess:
        if given.get('form', 'raw') != 'raw':
            raise UsageError(
                f'--skip-postprocess means --postprocess raw, got --postprocess {given["form"]} too'
            )
        given['form'] = 'raw'
    if given.get('dynamic') and given.get('dynamic_batch'):
        raise UsageError('--dynamic-batch fixes height and width, --dynamic-export does not: choose one')
    if 'opset' in given:
        check_opset(given['opset'], given.get('exporter', 'torchscript'))
    if 'height' in given:
        given['height'], given['width'] = parse_shape(given['height'])
    return given


def add_proof_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --frames, and the options of the engine that proves the file."""
    add = cli.adder(parser)
    add(
        '--frames N',
        "frames or sweeps of a proof: of the config's data.test when it is there, else a synthetic "
        'drive or generated sweeps (default: 12)',
        type=int,
    )
    add(
        '--engine',
        'engine that runs the ONNX file (default: onnxruntime); tensorrt builds one for the GPU at hand '
        'beside the file',
        'onnxruntime',
        choices=tuple(file_engines()),
    )
    add('--providers EP...', 'ONNX Runtime execution providers, in order; one that is not there is an error')
    add('--threads THREADS', 'threads within an operator (default: the engine decides)', 0)
    add(
        '--inference-precision',
        'what OpenVINO computes in, whatever the file holds (default: fp32)',
        choices=PRECISIONS,
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return backend name and options for `build_backend(engine, path, **options)`."""
    names = 'threads', 'providers', 'inference_precision'
    return engine_settings(args.engine, **{name: getattr(args, name) for name in names})


def parse_shape(shape: Any, option: str = '--shape') -> tuple[int, int]:
    """Return height and width of one or two numbers; None is 0, 0, which means the default."""
    if shape is None:
        return 0, 0
    sizes = list(shape) if isinstance(shape, list | tuple) else [shape]
    text = f'{option} {" ".join(map(str, sizes))}'
    if len(sizes) not in (1, 2):
        raise UsageError(f'{text}: expected one or two numbers, height and width')
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UsageError(f'{text}: expected positive sizes in pixels')
    return sizes[0], sizes[-1]


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --report and --json."""
    cli.add(
        parser,
        '--report DIR',
        'write DIR/report.html, one self-contained page, and DIR/verdict.json',
        writes=('{}/report.html', '{}/verdict.json', '{}/detections.png'),
    )
    cli.add(parser, '--json FILE', 'write the verdict as JSON')


def refuse_given(
    args: argparse.Namespace, parser: argparse.ArgumentParser, names: Iterable[str], why: str
) -> None:
    """Refuse options that were given and that this kind of model does not have, by name."""
    for name in names:
        value = getattr(args, name, None)
        if value != parser.get_default(name):
            raise UsageError(f'{_typed_name(parser, name, value)}: {why}')


def _typed_name(parser: argparse.ArgumentParser, name: str, value: Any) -> str:
    """Return what was typed to set an option: `--no-x` where that switched it off, all names of an alias."""
    action = next(action for action in parser._actions if action.dest == name)
    typed = action.option_strings
    if isinstance(action, argparse.BooleanOptionalAction):
        typed = [text for text in typed if text.startswith('--no-') is not value]
    return '/'.join(typed)
