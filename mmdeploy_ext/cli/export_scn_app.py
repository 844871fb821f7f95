"""`export_scn.py`: write a sparse LiDAR backbone, and prove it with `--verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.api import Exported, export_source
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import ranges
from mmdeploy_ext.cli.export_app import Export
from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import will_write
from mmdeploy_ext.core.printable import shape_text
from mmdeploy_ext.families.base import BACKBONE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.inputs.samples import Samples
    from mmdeploy_ext.sparse.ranges import Ranges

PRECISIONS = ('fp16', 'int8')
"""Precisions of a layer, and of its output."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description="Export the sparse-convolution backbone of a LiDAR model: to NVIDIA's libspconv dialect "
        'or to ONNX of standard operators. No GPU is needed, neither to export nor to prove.'
    )
    ranges.add_backbone_arguments(parser)
    cli.add(parser, '--output-file F', 'file to write (default: lidar.backbone.ORDER.onnx)', writes='{}')
    shared.add_declared(parser, choices.SPARSE)
    ranges.add_arguments(
        parser.add_argument_group('ranges of int8', 'measured ones are kept in OUTPUT_FILE.ranges.json')
    )
    group = parser.add_argument_group('proof')
    add = cli.adder(group)
    add('--verify', 'prove the file; exit status 1 when it is not')
    add('--verify-only', 'prove OUTPUT_FILE as it is there, write nothing')
    add('--edited', 'with --verify-only: the file was edited on purpose, inputs alone decide about its graph')
    add(
        '--input SWEEP...',
        'real sweeps that the proof adds: points (.bin, .npy), voxels (.npz: features and coordinates, '
        'coors_bxyz or coors_bzyx), folders of them, or info files (.pkl, .json)',
        [],
        dest='test_img',
    )
    add('--max-voxels N', 'most voxels of a sweep, for the contract', type=int)
    add('--node-list JSON', 'stored node list of another exporter that the file has to equal')
    add('--threads N', 'of ONNX Runtime (default: it decides)', 0)
    shared.add_library_argument(parser)
    shared.add_report_arguments(parser)
    cli.add_debug_option(parser)
    parser.set_defaults(device='cpu', frames=None, eval=None, mean=None, std=None, show=False)
    parser.set_defaults(engine='onnxruntime', providers=None, inference_precision=None)
    return parser


def parse_layer_precision(entries: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Return (PATTERN, P, Q) of each entry, PATTERN=P or PATTERN=P:Q.

    The layers whose node or module names fit the pattern ('*', '?', '[...]', see `fnmatch`) compute in the
    precision P, 'fp16' or 'int8', and store their output in Q, which is P by default; of the patterns of a
    layer the last counts. UsageError: an entry of another form, or an unknown precision.
    """
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


class BackboneExport(Export):
    """An export of a sparse backbone.

    Attributes:
        typed_options: options of the export on the command line, which a file has to have with --verify-only.
    """

    typed_options: dict[str, Any]
    product = BACKBONE
    samples_option = '--input'

    def values(self) -> dict[str, Any]:
        """Return name -> value of the given options of a backbone, after checks that need no config.

        `order` is that of --order, else of the name of the output, '' if it has none. Ranges of --ranges are
        read to `args.loaded_ranges`, and what the proof holds the file to is put into `claims`. UsageError:
        options that do not go together, values out of range, or a file of --ranges or --node-list that is
        missing or cannot be read. DataError: --calibrate has no sweeps.
        """
        from mmdeploy_ext.sparse.libspconv_contract import order_of_name

        args = self.args
        self.engine, self.weight_layout = shared.engine_options(args), args.weight_layout
        self.claims = dict(max_voxels=args.max_voxels, node_list=args.node_list or '')
        values = shared.option_values(args, choices.SPARSE)
        if 'layer_precision' in values:
            values['layer_precision'] = parse_layer_precision(values['layer_precision'])
        cli.check_minimums(args, max_voxels=1)
        _check_proof(args)
        self.typed_options = values
        for name in ('ranges', 'calibrate'):
            path = getattr(args, name)
            if path and not (args.precision or args.layer_precision):
                raise UsageError(f'--{name} {path}: goes with --precision or --layer-precision')
        ranges.check(args)
        return {'order': order_of_name(args.output_file or ''), **values}

    def export(self, samples: Samples) -> int:
        """Write the file, and with `--verify` prove it; or with `--verify-only` prove that which is there.

        `samples` are those of the proof. Return the exit status: 0 written or proven, 1 not proven.
        """
        if not self.args.verify_only:
            return super().export(samples)
        from mmdeploy_ext.cli.verify_app import prove_files

        self.args.onnx_file = self.args.output_file
        typed = json.loads(json.dumps(self.typed_options))  # tuples are lists in a file
        claims = dict(self.claims, ranges=self.args.loaded_ranges, edited=self.args.edited, asked=typed)
        return prove_files(self.args, self.source, samples, self.engine, **claims)

    def check(self) -> None:
        """Raise UsageError if the name of the file says another order, or the file of ranges is an input.

        The file of ranges is what --calibrate writes; it may not be what another option writes, either.
        """
        from mmdeploy_ext.sparse.libspconv_contract import order_of_name

        path = self.args.output_file
        if (order := order_of_name(path)) not in ('', self.options.order):
            raise UsageError(
                f'--output-file {path}: the name says {order}, the order is {self.options.order}; correct '
                f'the name or give --order {order}'
            )
        super().check()
        if self.args.calibrate:
            will_write('--calibrate', [f'{path}.ranges.json'])

    def write(self, samples: Samples) -> Exported:
        """Write the file, and print what it is; `samples` are read if `--verify` is given."""
        path = self.args.output_file
        exported = export_source(
            self.source,
            path,
            self.options,
            samples=samples if self.args.verify else None,
            before_weights=self.check,
            ranges=self.ranges,
        )
        graph, options = exported.sparse_graph, exported.options
        print(
            f'{path}: {options.target}, {options.order}, {len(graph.convolutions())} convolutions, '
            f'output {shape_text(graph.output_shape)}, exported in {exported.seconds:.1f} s'
        )
        return exported

    def ranges(self, deployment: Deployment, options: Options) -> Ranges | None:
        """Return the ranges to write: of --ranges, measured by --calibrate, or of the checkpoint.

        The report of the weights is printed before. None: the options name no precision, or one without int8
        and there are no ranges. UsageError: a layer is int8, and there are none.
        """
        from mmdeploy_ext.exporting.sparse_backbone import has_int8, has_precision

        print(deployment.report.summary())
        int8_ranges = None
        if has_precision(options):
            target = f'{self.args.output_file}.ranges.json'
            int8_ranges = ranges.find(self.args, deployment, target, int8_fp16_io=options.int8_fp16_io)
        if int8_ranges is None and has_int8(options):
            raise UsageError(
                'int8 needs a range for every layer, and the checkpoint has none: give sweeps by '
                '--calibrate, or the file of an earlier calibration by --ranges'
            )
        self.claims['ranges'] = int8_ranges
        return int8_ranges

    def proof_command(self) -> list[str]:
        """Return the name of the command that proves the file, and its words without `options.proof_words`.

        `--verify-only` is among them.
        """
        args = self.args
        words = ['export-backbone', args.config, args.checkpoint]
        words += ['--output-file', args.output_file, '--verify-only']
        if args.weight_layout != 'auto':
            words += ['--weight-layout', args.weight_layout]
        return words


def _check_proof(args: argparse.Namespace) -> None:
    """Refuse arguments of a proof that do not go together."""
    if args.verify and args.verify_only:
        raise UsageError('--verify and --verify-only: give one of them')
    if args.verify_only and not args.output_file:
        raise UsageError('--verify-only: give the file by --output-file')
    if args.verify_only and args.calibrate:
        raise UsageError(
            '--calibrate: --verify-only writes nothing; give the ranges of the export by --ranges'
        )
    if args.edited and not args.verify_only:
        raise UsageError('--edited: goes with --verify-only')
    options = dict(report=args.report, json=args.json, input=args.test_img, node_list=args.node_list)
    for name, value in options.items():
        if value and not (args.verify or args.verify_only):
            raise UsageError(f'--{name.replace("_", "-")}: goes with --verify or --verify-only')
    if args.target == 'portable' and (args.node_list or args.max_voxels is not None):
        raise UsageError('--node-list and --max-voxels go with --target libspconv')
    if args.node_list and not Path(args.node_list).is_file():
        raise UsageError(f'{args.node_list}: no such file')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 exported or proven, 1 not proven or failed, 2 a refused option or file.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(lambda args: BackboneExport(args).run(), build_parser(), argv)
