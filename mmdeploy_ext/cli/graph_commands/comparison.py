"""`graph.py diff`: the first difference of a file and its PyTorch model, or of two files."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ShapeError, UsageError, after_weights
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, write_json
from mmdeploy_ext.cli.options import parse_cfg_options
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    import argparse

    from mmdeploy_ext.graphs.diff.findings import Comparison

COMMANDS = Commands()


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    add = cli.adder(parser)
    add('--input PATH', 'inputs by name: .npz, a folder of .npy, or a dump of a _pth run')
    add('--seed SEED', 'two files: seed of the random inputs (default: 0)', 0)
    add(
        '--rtol RTOL',
        'report a node that adds more than this difference, relative to its largest value (default: 1e-5;'
        ' 3e-3 for float16)',
        type=float,
    )
    add('--all', 'print every tensor, not only those near the difference')
    add(
        '--report DIR',
        'write DIR/report.html with the error of every tensor along the graph',
        writes=('{}/report.html', '{}/diff.json'),
    )


@COMMANDS.add(
    'diff',
    'Find the first tensor where a file differs from its PyTorch model, or from another file',
    argument(
        'models MODEL...',
        'CONFIG CHECKPOINT m.onnx compares a file with PyTorch; a.onnx b.onnx compares b with a and needs '
        'no PyTorch',
    ),
    argument('--images PATH...', 'images for PyTorch (default: demo/toy.jpg)'),
    argument(
        '--no-fresh',
        'do not export again to pair tensors; pair by name, value and position',
    ),
    argument(
        '--against',
        'float64: with CONFIG CHECKPOINT, split the difference into rounding of either side and the export',
        choices=('float64',),
    ),
    argument('--cfg-options KEY=VALUE...', 'override the config'),
    add_pair_arguments,
    takes_file=False,
)
def run_diff(args: argparse.Namespace) -> int:
    from pathlib import Path

    if len(args.models) not in (2, 3):
        raise UsageError(
            f'diff expects CONFIG CHECKPOINT m.onnx, or a.onnx b.onnx; got {len(args.models)}: '
            f'{" ".join(args.models)}'
        )
    if args.against and len(args.models) == 2:
        raise UsageError('--against float64: requires CONFIG CHECKPOINT m.onnx')
    if args.rtol is not None and not args.rtol > 0:
        raise UsageError(f'--rtol {args.rtol}: expected a positive number')
    if args.report:
        check_writable(Path(args.report) / 'report.html')
    with cli.stderr().status('comparing') if cli.stderr().is_terminal else contextlib.nullcontext():
        comparison = _against_checkpoint(args) if len(args.models) == 3 else _two_files(args)
    from mmdeploy_ext.proving.views.difference import print_comparison, write_report

    write_json(args, comparison.to_json())
    page = write_report(comparison, Path(args.report)) if args.report else None
    print_comparison(comparison, cli.stdout(), args.all)
    if page:
        print(f'report: {page}')
    return 0 if comparison.equal else 1


def _two_files(args: argparse.Namespace) -> Comparison:
    from mmdeploy_ext.graphs.diff.files import diff_files
    from mmdeploy_ext.graphs.io.files import load_tensors

    feeds = load_tensors(args.input) if args.input else None
    try:
        return diff_files(*args.models, feeds, args.seed, args.rtol)
    except ShapeError as error:  # about the feeds
        raise UsageError(f'--input {args.input}: {error}' if args.input else str(error)) from error


def _against_checkpoint(args: argparse.Namespace) -> Comparison:
    if args.input and args.images:
        raise UsageError('--input and --images: pass only one of them')
    cli.wait_passively()
    compat.apply()
    from mmdeploy_ext.families.detector import build, load_weights, read_config
    from mmdeploy_ext.graphs.diff.findings import diff_bars_of
    from mmdeploy_ext.graphs.io.files import load_tensors
    from mmdeploy_ext.proving.difference import first_difference
    from mmdeploy_ext.proving.provenance import refuse_other_settings
    from mmdeploy_ext.spec.metadata import read_metadata

    config, checkpoint, path = args.models
    metadata = read_metadata(path)
    cfg_options = parse_cfg_options(args.cfg_options)
    feeds = load_tensors(args.input) if args.input else None

    detector = read_config(config, checkpoint, cfg_options, file=path)
    kind = kind_of(detector.family)
    metadata.require(path, detector.family.name)
    refuse_other_settings(detector.cfg, metadata.options.get('cfg_options', {}), path)
    refused = kind.refused('graph diff', detector.family)
    if args.images and 'images' in refused:
        raise UsageError(f'--images: {refused["images"]}')
    build(detector)
    images = kind.images_of_difference(detector, args.images or kind.public_samples)
    load_weights(detector)
    default = diff_bars_of(metadata.options.get('precision'))
    settings = dict(fresh=not args.no_fresh, against_float64=bool(args.against))
    with after_weights():
        return first_difference(detector, path, images, feeds, default.at(args.rtol), **settings)
