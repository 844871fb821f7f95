"""`scn_ptq.py`: INT8 ranges of a sparse backbone, and the errors of int8 and fp16, without a GPU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, after_weights
from mmdeploy_ext.base.files import check_writable, write_json
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import ranges
from mmdeploy_ext.exporting.int8 import Calibration
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.families.detector import Detector

DEFAULT_OUTPUT = 'ranges.json'
WORST = 10
"""Layers that the table shows without --all."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Calibrate the INT8 ranges of a LiDAR backbone, or report its errors in int8 and fp16 '
        'per layer. Runs on a CPU.'
    )
    cli.add_fields(parser, ModelRequest, 'config checkpoint cfg_options')
    ranges.add_weight_layout(parser)
    group = parser.add_argument_group('calibration')
    ranges.add_arguments(group)
    cli.add_fields(group, Calibration, 'percentile add_method unfolded')
    cli.add(group, '--out FILE', f'file to write the ranges to (default: {DEFAULT_OUTPUT})')

    fidelity = parser.add_argument_group('fidelity')
    add = cli.adder(fidelity)
    add(
        '--fidelity DIR|INFOS',
        'compare int8 and fp16 with fp32 (default: on the sweeps of --calibrate)',
        nargs='?',
        const='',
    )
    add('--fidelity-batches N', 'number of sweeps, evenly spread; 0 uses all (default: 4)', 4)
    cli.add_fields(fidelity, Calibration, 'int8_fp16_io')
    add('--fp16-layers PATTERN...', 'keep layers in fp16, by name or module path', [])
    add('--target TARGET', 'suggest fp16 layers until the output reaches this cosine (default: 0.999)', 0.999)
    add('--no-advice', 'skip the advice and its runs')
    add('--all', f'show all layers, not only the {WORST} worst')
    add('--json FILE', 'write the report as JSON')
    return parser


def check(args: argparse.Namespace) -> None:
    from mmdeploy_ext.runtime.sweeps import sweep_items

    if args.fidelity is None and not args.calibrate and not args.out:
        raise UsageError('nothing to do: pass --calibrate DIR|INFOS or --fidelity DIR|INFOS')
    if args.fidelity == '' and not args.calibrate:
        raise UsageError('--fidelity: expected a folder of sweeps or infos, or --calibrate')
    cli.check_minimums(args, fidelity_batches=0)
    ranges.check(args)
    if args.fidelity:
        sweep_items(args.fidelity)
    if args.out or args.calibrate:
        check_writable(args.out or DEFAULT_OUTPUT)


def run(args: argparse.Namespace) -> int:
    check(args)
    cli.wait_passively()
    compat.apply()
    from mmdeploy_ext.families.backbone_files import load

    cfg_options = shared.parse_cfg_options(args.cfg_options)
    detector = load(args.config, args.checkpoint, cfg_options, args.weight_layout)
    cli.say(cli.stderr(), detector.report.summary())
    with after_weights():
        int8_ranges = _ranges(args, detector)
        if args.fidelity is not None:
            _compare(args, detector, int8_ranges)
    return 0


def _ranges(args: argparse.Namespace, detector: Detector) -> Ranges:
    int8_ranges = ranges.find(args, detector, args.out or DEFAULT_OUTPUT)
    if int8_ranges is None:
        raise UsageError(f'{args.checkpoint}: has no ranges; pass --calibrate DIR|INFOS or --ranges FILE')
    if args.out and not args.calibrate:
        ranges.save(int8_ranges, args.out)
    return int8_ranges


def _compare(args: argparse.Namespace, detector: Detector, int8_ranges: Ranges) -> None:
    from mmdeploy_ext.bench.precision.fidelity import fidelity, fidelity_table
    from mmdeploy_ext.bench.precision.sparse_calibration import config_sweeps
    from mmdeploy_ext.families import backbone_files as deploy

    options = detector.family.choose(
        order=detector.settings.order,
        precision='int8',
        int8_fp16_io=args.int8_fp16_io,
        layer_precision=tuple((pattern, 'fp16', 'fp16') for pattern in args.fp16_layers),
    )
    graph = deploy.make_graph(
        deploy.trace(detector), options, detector.family, int8_ranges, detector.checkpoint_sha256
    )
    source = args.fidelity or args.calibrate
    sweeps = config_sweeps(detector, source, graph.order, args.fidelity_batches, args.root)
    result = fidelity(graph, int8_ranges, sweeps, target=args.target, advise=not args.no_advice)
    if args.json:
        write_json(args.json, result.to_json())
    console = cli.stdout()
    console.print(fidelity_table(result, None if args.all else WORST))
    cli.say(console, result.advice_text())


main = cli.program(run, build_parser)
