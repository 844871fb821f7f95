"""`export_scn.py`: write a sparse LiDAR backbone, and prove it with `--verify`."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps import proof
from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.sparse import SparseFamily
    from mmdeploy_ext.sparse.ranges import Ranges

PRECISIONS = ('fp16', 'int8')
LAYOUTS = ('auto', 'spconv1', 'spconv2', 'spconv2-rskc')
METHODS = ('mse', 'percentile', 'max')


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description="Export the sparse-convolution backbone of a LiDAR model: to NVIDIA's libspconv dialect "
        'or to ONNX of standard operators. No GPU is needed, neither to export nor to prove.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, in any published form')
    cli.writes(
        parser.add_argument(
            '--output-file', metavar='F', help='file to write (default: lidar.backbone.ORDER.onnx)'
        )
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=shared.CFG_OPTIONS_HELP)
    _add_graph_options(parser)
    _add_range_options(parser)
    _add_proof_options(parser)
    cli.add_debug_option(parser)
    return parser


def _add_graph_options(parser: argparse.ArgumentParser) -> None:
    shared.add_declared(parser, choices.SPARSE)
    group = parser.add_argument_group('the file')
    group.add_argument(
        '--weight-layout',
        choices=LAYOUTS,
        default='auto',
        help="of the checkpoint's kernels (default: auto, which refuses what cannot be told)",
    )


def _add_range_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('ranges of int8')
    group.add_argument('--ranges', metavar='FILE', help='JSON of an earlier calibration, edited or not')
    group.add_argument(
        '--calibrate',
        metavar='DIR|INFOS',
        help='measure them on a folder of sweeps or infos of mmdet3d; kept in OUTPUT_FILE.ranges.json',
    )
    group.add_argument('--method', choices=METHODS, default='mse', help='of inputs (default: mse)')
    group.add_argument(
        '--batches', type=int, default=100, metavar='N', help='sweeps, evenly; 0 takes all (default: 100)'
    )
    group.add_argument(
        '--fp16-ranges',
        action=argparse.BooleanOptionalAction,
        help='round ranges to fp16 (default: as the reference, which does for BEVFusion)',
    )
    group.add_argument('--data-root', default='', metavar='DIR', help='where the sweeps of infos are')


def _add_proof_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('proof')
    group.add_argument('--verify', action='store_true', help='prove the file; exit status 1 when it is not')
    group.add_argument(
        '--verify-only', action='store_true', help='prove OUTPUT_FILE as it is there, write nothing'
    )
    group.add_argument(
        '--edited',
        action='store_true',
        help='with --verify-only: the file was edited on purpose, inputs alone decide about its graph',
    )
    group.add_argument(
        '--input',
        nargs='+',
        default=[],
        metavar='SWEEP',
        help='real sweeps that the proof adds: points (.bin, .npy), voxels (.npz: features and coordinates, '
        'coors_bxyz or coors_bzyx), folders of them, or info files (.pkl)',
    )
    group.add_argument('--max-voxels', type=int, metavar='N', help='most voxels of a sweep, for the contract')
    group.add_argument(
        '--node-list', metavar='JSON', help='stored node list of another exporter that the file has to equal'
    )
    group.add_argument(
        '--threads', type=int, default=0, metavar='N', help='of ONNX Runtime (default: it decides)'
    )
    shared.add_report_arguments(parser)


def parse_layer_precision(entries: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Read PATTERN=P or PATTERN=P:Q.

    Raises:
        UsageError: another form, or a precision that does not exist.
    """
    found = []
    for entry in entries:
        pattern, _, value = entry.rpartition('=')
        precision, _, output_precision = value.partition(':')
        output_precision = output_precision or precision
        if not pattern or precision not in PRECISIONS or output_precision not in PRECISIONS:
            raise UsageError(
                f'--layer-precision {entry}: expected PATTERN=fp16 or PATTERN=int8:fp16, e.g. '
                f"'conv_input.*=fp16'"
            )
        found.append((pattern, precision, output_precision))
    return tuple(found)


def parse_options(args: argparse.Namespace) -> Options:
    """Turn arguments into export options; what they contradict is an error.

    Raises:
        UsageError: options that do not go together, or numbers out of range.
    """
    from mmdeploy_ext.deploy.sparse import has_precision
    from mmdeploy_ext.sparse.contract import order_of_name

    values = shared.given_values(args, choices.SPARSE)
    values['layer_precision'] = parse_layer_precision(values.get('layer_precision', ()))
    options = Options(choices.SPARSE, **values)
    options.check(given=[name for name, value in values.items() if value != ()])
    if not options.order:
        options = options.replace(order=order_of_name(args.output_file or ''))
    quantised = options.precision == 'int8' or any('int8' in entry[1:] for entry in options.layer_precision)
    for name in ('ranges', 'calibrate'):
        if getattr(args, name) and not has_precision(options):
            raise UsageError(f'--{name} {getattr(args, name)}: goes with --precision or --layer-precision')
    if args.ranges and args.calibrate:
        raise UsageError('--ranges and --calibrate: give one of them')
    _check_target(args, options)
    for name, least in (('threads', 0), ('max_voxels', 1), ('batches', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f'--{name.replace("_", "-")} {value}: expected at least {least}')
    if quantised and args.verify_only is False and not (args.ranges or args.calibrate):
        args.needs_ranges = True
    return options


def _check_target(args: argparse.Namespace, options: Options) -> None:
    """Refuse what only the other target has."""
    from mmdeploy_ext.deploy.sparse import has_precision

    if options.target == 'portable' and has_precision(options):
        raise UsageError(
            '--target portable computes in float32; --precision and --layer-precision go with libspconv'
        )
    limited = options.output_bound or args.node_list or args.max_voxels is not None
    if options.target == 'portable' and limited:
        raise UsageError('--output-bound, --node-list and --max-voxels go with --target libspconv')


def _check_proof(args: argparse.Namespace) -> None:
    from pathlib import Path

    if args.verify and args.verify_only:
        raise UsageError('--verify and --verify-only: give one of them')
    if args.verify_only and not args.output_file:
        raise UsageError('--verify-only: give the file by --output-file')
    if args.edited and not args.verify_only:
        raise UsageError('--edited: goes with --verify-only')
    for name in ('report', 'json', 'input', 'node_list'):
        if getattr(args, name) and not (args.verify or args.verify_only):
            raise UsageError(f'--{name.replace("_", "-")}: goes with --verify or --verify-only')
    for path in filter(None, [args.ranges, args.node_list]):
        if not Path(path).is_file():
            raise UsageError(f'{path}: no such file')
    if args.calibrate and not Path(args.calibrate).exists():
        raise UsageError(f'--calibrate {args.calibrate}: no such file or folder')
    proof.check_report_targets(args)
    if args.ranges:
        from mmdeploy_ext.sparse.ranges import Ranges

        args.known_ranges = Ranges.load(args.ranges)


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Export, and prove when asked to."""
    cli.wait_passively()
    args.needs_ranges, args.known_ranges = False, None
    options = parse_options(args)
    _check_proof(args)
    from mmdeploy_ext.families.sparse import SparseFamily
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.core.files import will_write
    from mmdeploy_ext.deploy import sparse as deploy
    from mmdeploy_ext.deploy.deployment import load
    from mmdeploy_ext.families.base import BACKBONE

    cfg_options = shared.parse_cfg_options(args.cfg_options)
    samples = proof.Samples(SparseFamily, args.input, option='--input')
    engine = dict(threads=args.threads)
    settings = dict(max_voxels=args.max_voxels, node_list=args.node_list or '')
    register()
    if args.verify_only:
        layout, settings = args.weight_layout, dict(settings, ranges=args.known_ranges)
        return proof.verify_backbone(args, args.output_file, samples, cfg_options, engine, layout, **settings)
    chosen = options

    def check(_cfg: Any, family: SparseFamily, _model: Any) -> None:
        nonlocal chosen
        chosen = deploy.resolve(options, family)
        args.output_file = args.output_file or deploy.default_file(chosen)
        will_write('--output-file', [args.output_file])
        if args.calibrate:
            will_write('--calibrate', [f'{args.output_file}.ranges.json'])
        deploy.check_target(chosen, args.output_file)

    kind = dict(product=BACKBONE, weight_layout=args.weight_layout)
    deployment = load(args.config, args.checkpoint, cfg_options, before_weights=check, **kind)
    print(deployment.report.summary())
    found = samples.of(deployment)
    with after_weights():
        ranges = find_ranges(args, deployment)
        graph, seconds = deploy.export_file(deployment, chosen, args.output_file, ranges)
        print(
            f'{args.output_file}: {chosen.target}, {chosen.order}, {len(graph.convolutions())} convolutions, '
            f'output {"x".join(map(str, graph.output_shape))}, exported in {seconds:.1f} s'
        )
        if args.verify:
            files = [args.output_file]
            return proof.run_proof(deployment, files, found, args, engine, ranges=ranges, **settings)
    words = ['python', 'tools/deployment/export_scn.py', args.config, args.checkpoint]
    words += ['--output-file', args.output_file, '--verify-only']
    words += ['--weight-layout', args.weight_layout] if args.weight_layout != 'auto' else []
    overrides = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    print(f'NOT PROVEN: nothing was compared. Prove it with\n  {shlex.join([*words, *overrides])}')
    return 0


def find_ranges(args: argparse.Namespace, deployment: Deployment) -> Ranges | None:
    """Return the ranges to write: of a file, measured, or of the checkpoint; None where none are needed.

    Raises:
        UsageError: int8 is asked for, and there are none.
    """
    if not (args.precision or args.layer_precision):
        return None
    if args.known_ranges is not None:
        return args.known_ranges.half() if args.fp16_ranges else args.known_ranges
    from mmdeploy_ext.quantize import deployed

    if args.calibrate:
        how = deployed.Calibration(
            args.method,
            batches=args.batches,
            half=args.fp16_ranges,
            root=args.data_root,
            int8_fp16_io=bool(args.int8_fp16_io),
        )
        ranges = deployed.calibrate(deployment, args.calibrate, how)
        path = f'{args.output_file}.ranges.json'
        ranges.save(path)
        sweeps = f'{ranges.batches} sweep{"s" * (ranges.batches > 1)}'
        print(f'{path}: ranges of {len(ranges.nodes)} layers, {sweeps}, {ranges.calibrator}')
        return ranges
    stored = deployed.from_checkpoint(deployment, args.fp16_ranges)
    if stored is None and args.needs_ranges:
        raise UsageError(
            'int8 needs a range for every layer, and the checkpoint has none: give sweeps by --calibrate, or '
            'the file of an earlier calibration by --ranges'
        )
    return stored


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        register: imports the projects whose families can be exported.
        argv: command line; None reads sys.argv.

    Returns:
        0 exported (and proven when asked), 1 checked and failed, 2 usage.
    """
    return cli.run(lambda args: run(args, register), build_parser(), argv)
