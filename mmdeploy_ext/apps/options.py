"""Options that several tools share, with mmdet's names and meaning. Imports neither torch nor mmcv."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from mmdeploy_ext.errors import UsageError

CFG_OPTIONS_HELP = (
    'override the config: key=value pairs, nested keys with dots, e.g. model.test_cfg.score_thr=0.3'
)


def parse_cfg_options(pairs: list[str] | None) -> dict[str, Any]:
    """Parse `--cfg-options`: Python literals where they parse, comma lists, otherwise text.

    Raises:
        UsageError: a pair without '='.
    """
    options: dict[str, Any] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition('=')
        if not separator or not key:
            raise UsageError(f'--cfg-options {pair}: expected key=value')
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    lowered = {'true': True, 'false': False, 'none': None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [_value(part) for part in text.split(',')] if ',' in text and text[0] not in '[({' else text
    return list(value) if isinstance(value, tuple) and text[0] not in '(' else value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, CHECKPOINT, --cfg-options and --device."""
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=CFG_OPTIONS_HELP)
    parser.add_argument(
        '--device', default='cpu', help="where PyTorch runs: 'cpu', 'cuda', 'cuda:1' (default: cpu)"
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the engine that proves the file."""
    parser.add_argument(
        '--engine',
        choices=('onnxruntime', 'openvino'),
        default='onnxruntime',
        help='engine that runs the ONNX file (default: onnxruntime)',
    )
    parser.add_argument(
        '--providers',
        nargs='+',
        metavar='EP',
        help='ONNX Runtime execution providers, in order; one that is not there is an error',
    )
    parser.add_argument(
        '--threads', type=int, default=0, help='threads within an operator (default: the engine decides)'
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return backend name and options for `build_backend(engine, path, **options)`.

    Raises:
        UsageError: options that the engine does not have.
    """
    options: dict[str, Any] = dict(
        engine={'onnxruntime': 'OnnxRuntimeBackend', 'openvino': 'OpenVinoBackend'}[args.engine]
    )
    if args.threads < 0:
        raise UsageError(f'--threads {args.threads}: expected 0 (the engine decides) or more')
    if args.threads:
        options['threads'] = args.threads
    if args.providers:
        if args.engine != 'onnxruntime':
            raise UsageError(f'--providers goes with --engine onnxruntime, got --engine {args.engine}')
        options['providers'] = args.providers
    return options


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --report and --json."""
    parser.add_argument(
        '--report', metavar='DIR', help='write DIR/report.html, one self-contained page, and DIR/verdict.json'
    )
    parser.add_argument('--json', metavar='FILE', help='write the verdict as JSON')
