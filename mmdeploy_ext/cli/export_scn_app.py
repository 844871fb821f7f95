"""`mm2onnx export --backbone`: write a sparse LiDAR backbone, and prove it with `--verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.api import ProofRequest, prove_on, prove_read
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, after_weights, shape_text
from mmdeploy_ext.base.files import will_write
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import proof, ranges
from mmdeploy_ext.engines.registry import engine_settings
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.families.detector import Detector, read_config
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.spec import options as choices

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.spec.options import Options

PRECISIONS = ('fp16', 'int8')
"""Precisions of a layer, and of its output."""


def add_arguments(parser: cli.ArgumentParser) -> None:
    """Add the options of `export --backbone`."""
    ranges.add_weight_layout(parser)
    shared.add_declared(parser, choices.SPARSE)
    ranges.add_arguments(
        parser.add_argument_group('ranges of int8', 'measured ranges are written to FILE.ranges.json')
    )
    group = parser.add_argument_group('proof')
    add = cli.adder(group)
    add('--verify-only', 'prove the existing file of --out and write nothing')
    add(
        '--edited',
        'with --verify-only: the file was edited on purpose; compare only its results, not the graph',
    )
    add(
        '--input SWEEP...',
        'real sweeps for the proof: points (.bin, .npy), voxels (.npz: features and coordinates, '
        'coors_bxyz or coors_bzyx), folders of them, or info files (.pkl, .json)',
        (),
        dest='samples',
    )
    add('--max-voxels N', 'largest number of voxels of a sweep; a smaller output bound is an error', type=int)
    add('--node-list JSON', 'node list of another exporter; the file must equal it')
    add('--threads N', "threads of ONNX Runtime (default: ONNX Runtime's choice)", 0)
    cli.add_fields(parser, ProofRequest, 'library')
    shared.add_report_arguments(parser)


def parse_layer_precision(entries: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """(PATTERN, P, Q) of each entry, PATTERN=P or PATTERN=P:Q."""
    precisions = []
    for entry in entries:
        pattern, _, value = entry.rpartition('=')
        precision, _, output_precision = value.partition(':')
        output_precision = output_precision or precision
        if not pattern or precision not in PRECISIONS or output_precision not in PRECISIONS:
            raise UsageError(
                f'--layer-precision {entry}: expected PATTERN=fp16 or PATTERN=int8:fp16, e.g. '
                f"'conv_input.*=fp16'"
            )
        precisions.append((pattern, precision, output_precision))
    return tuple(precisions)


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.exporting.sparse.libspconv_contract import order_of_name
    from mmdeploy_ext.families.backbone_files import export_file

    cli.wait_passively()
    typed = check_arguments(args)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    proof.check_report_targets(args)

    layout = args.weight_layout
    detector = read_config(args.config, args.checkpoint, cfg_options, product=BACKBONE, weight_layout=layout)
    family, kind = detector.family, kind_of(detector.family)
    options = family.choose(**{'order': order_of_name(args.output_file or ''), **typed})
    options.check(names=[*typed, 'order'])
    proof.print_replaced()
    proof.print_libraries_not_run(detector.cfg, args)
    if args.verify:
        kind.check_provable(family)
    of_backbones = dict(max_voxels=args.max_voxels, node_list=args.node_list or '')
    if args.verify_only:
        asked = json.loads(json.dumps(typed))  # tuples are lists in a file
        settings = dict(of_backbones, ranges=args.loaded_ranges)
        request = shared.request_of(
            ProofRequest, args, onnx_file=args.output_file, asked=asked, option='--input', settings=settings
        )
        return proof.show(prove_read(detector, request), detector, args)

    inputs = kind.samples(detector, args.samples, option='--input')
    args.output_file = output = args.output_file or kind.default_output(family, '', options)
    kind.build(detector)
    check_order(output, options)
    if args.calibrate:
        will_write('--calibrate', [f'{output}.ranges.json'])
    options = kind.load(detector, options, output)

    chosen = inputs.of(detector) if args.verify else None
    with after_weights():
        print(detector.report.summary())
        int8_ranges = find_ranges(args, detector, options)
        graph, seconds = export_file(detector, options, output, int8_ranges)
    print(
        f'{output}: {options.target}, {options.order}, {len(graph.convolutions())} convolutions, '
        f'output {shape_text(graph.output_shape)}, exported in {seconds:.1f} s'
    )

    if not args.verify:
        words = [args.config, args.checkpoint, '--out', output, '--verify-only']
        words += ['--weight-layout', layout] if layout != 'auto' else []
        proof.print_proof_command('export --backbone', words, args)
        return 0
    of_backbones['ranges'] = int8_ranges
    claims = Claims(written=True, library=args.library, settings=of_backbones)
    engine = engine_settings('onnxruntime', threads=args.threads)
    verdict = prove_on(detector, [output], chosen, engine, claims)
    return proof.show(verdict, detector, args)


def check_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Given options of the graph, after checks that need no config."""
    values = shared.option_values(args, choices.SPARSE)
    if 'layer_precision' in values:
        values['layer_precision'] = parse_layer_precision(values['layer_precision'])
    cli.check_minimums(args, max_voxels=1)
    _check_proof(args)
    for name in ('ranges', 'calibrate'):
        path = getattr(args, name)
        if path and not (args.precision or args.layer_precision):
            raise UsageError(f'--{name} {path}: requires --precision or --layer-precision')
    ranges.check(args)
    return values


def check_order(output: str, options: Options) -> None:
    """Raise UsageError if the file's name says another order than the options."""
    from mmdeploy_ext.exporting.sparse.libspconv_contract import order_of_name

    order = order_of_name(output)
    if order not in ('', options.order):
        raise UsageError(
            f'--out {output}: the name says {order}, but the order is {options.order}; correct the name '
            f'or pass --order {order}'
        )


def find_ranges(args: argparse.Namespace, detector: Detector, options: Options) -> Ranges | None:
    """Ranges of --ranges, measured by --calibrate, or of the checkpoint; or None."""
    from mmdeploy_ext.families.backbone_files import has_int8, has_precision

    int8_ranges = None
    if has_precision(options):
        target = f'{args.output_file}.ranges.json'
        int8_ranges = ranges.find(args, detector, target)
    if int8_ranges is None and has_int8(options):
        raise UsageError(
            'int8 needs a range for every layer, but the checkpoint has none: pass sweeps with '
            '--calibrate, or the ranges of an earlier calibration with --ranges'
        )
    return int8_ranges


def _check_proof(args: argparse.Namespace) -> None:
    if args.verify_only and not args.output_file:
        raise UsageError('--verify-only: pass the file with --out')
    if args.edited and not args.verify_only:
        raise UsageError('--edited: requires --verify-only')
    for name in ('report', 'json'):
        if getattr(args, name) and not (args.verify or args.verify_only):
            raise UsageError(f'--{name}: requires --verify or --verify-only')
    if args.node_list and not Path(args.node_list).is_file():
        raise UsageError(f'{args.node_list}: no such file')
