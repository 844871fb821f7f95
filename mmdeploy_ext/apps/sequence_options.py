"""Command-line options of streaming models. Imports neither torch nor mmcv before it is asked to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps.options import precision_options
from mmdeploy_ext.contract.precision import check_precision, spelt
from mmdeploy_ext.core.errors import EngineError, UsageError
from mmdeploy_ext.engines import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmdeploy_ext.families.sequence import SequenceOptions

CHOICES = dict(
    contract=('deploy', 'fork'),
    fork_version=('1.0', '1.1'),
    fork_img2lidar=('token', 'depth'),
    layers=('all', 'last'),
)
HELP = dict(
    contract='deploy: three graphs, state in the last LiDAR frame (default); fork: the one graph of the '
    'StreamPETR deployment fork',
    fork_version="the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    fork_img2lidar='matrices per token (default), or per token and depth bin',
    layers='decoder layers in the outputs (default: all)',
)


def add_sequence_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only streaming models have; None where it was not given."""
    group = parser.add_argument_group('streaming models (StreamPETR)')
    for name, choices in CHOICES.items():
        group.add_argument(f'--{name.replace("_", "-")}', choices=choices, help=HELP[name])
    add_frames_argument(group)


def add_frames_argument(parser: Any) -> None:
    """Add --frames."""
    parser.add_argument(
        '--frames',
        type=int,
        metavar='N',
        help="frames of a proof: of the config's data.test when it is there, else a synthetic drive "
        '(default: 12)',
    )


def sequence_options(args: argparse.Namespace) -> SequenceOptions:
    """Return the export options of the command line; opset 0 where the model is to say.

    Raises:
        UsageError: options that contradict each other or that streaming models do not have.
    """
    from mmdeploy_ext.exporting.exporter import check_opset
    from mmdeploy_ext.families.sequence import SequenceOptions

    chosen = {name: getattr(args, name) for name in CHOICES if getattr(args, name)}
    if args.opset_version is not None:
        check_opset(args.opset_version, args.exporter)
    options = SequenceOptions(
        **chosen,
        **precision_options(args),
        opset=args.opset_version or 0,
        exporter=args.exporter,
        simplify=args.simplify,
    )
    check_combination(options, chosen)
    return options


def check_combination(options: SequenceOptions, given: Iterable[str], where: str = '--') -> None:
    """Refuse options that do nothing together.

    Args:
        options: all of them.
        given: names of those that the user gave.
        where: what stands before a name in the message; '--' spells it as on the command line.
    """
    for name in ('fork_version', 'fork_img2lidar'):
        if name in given and options.contract != 'fork':
            raise UsageError(f'{spelt(name, where)} goes with contract fork, got {options.contract}')
    check_precision(options.precision, options.fp16_io, options.keep_fp32, where)


def check_engine_kind(kind: str, inference_precision: str | None = None) -> None:
    """Refuse an engine that models of frames do not run on, before anything is exported for it.

    Args:
        kind: registered name of the backend.
        inference_precision: of OpenVINO, where it was given.

    Raises:
        EngineError: the message says which one can.
        UsageError: bfloat16 or float16 of the engine, by which no sequence is judged.
    """
    if 'stream' not in BACKENDS[kind].runs:
        able = [name for name, row in BACKENDS.items() if 'stream' in row.runs]
        raise EngineError(f'{kind}: models of frames run on {" or ".join(able)}')
    if inference_precision not in (None, 'fp32'):
        raise UsageError(
            f'--inference-precision {inference_precision}: goes with models of single images; models of '
            f'frames have --precision fp16 of the export'
        )


def refuse_given(
    args: argparse.Namespace, parser: argparse.ArgumentParser, names: Iterable[str], why: str
) -> None:
    """Refuse options that were given and that this kind of model does not have.

    Raises:
        UsageError: names the first one.
    """
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
