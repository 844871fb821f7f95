"""`lint.py`: run a model under observation and report what an export of it will get wrong."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import after_weights
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.spec.options import check_opset
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.bench.lint.report import Report
    from mmdeploy_ext.families.detector import Detector

BOTH = 'both'


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Run a model and report the lines of code that an export would get wrong, and what to '
        'write instead. Exit status 1 if there is an error.'
    )
    cli.add_fields(parser, ModelRequest, shared.MODEL)
    add = cli.adder(parser)
    add('--input-img INPUT_IMG', 'input image (default: demo/toy.jpg)')
    add('--shape N...', 'height and width (default: from the test pipeline)', type=int)
    add(
        '--dynamic-export',
        'report code that depends on sizes, with a second, larger image (default: sizes are fixed)',
    )
    add(
        '--postprocess',
        'how much of the post-processing is in the graphs (default: full)',
        'full',
        choices=('full', 'decode', 'raw'),
    )
    add(
        '--exporter',
        'exporter to try; it decides the severities (default: torchscript)',
        'torchscript',
        choices=('torchscript', 'dynamo', BOTH),
    )
    add('--opset-version N', 'opset of the trial export', type=int)
    add('--no-export', 'skip the trial export')
    add('--notes', 'also show findings that the exporter handles')
    add('--json FILE', 'also write the findings as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    compat.apply()
    from mmdeploy_ext.bench.lint.report import print_report
    from mmdeploy_ext.bench.lint.rules import EXPORTERS
    from mmdeploy_ext.families.detector import build, load_weights, read_config

    exporters = EXPORTERS if args.exporter == BOTH else (args.exporter,)
    for exporter in exporters if args.opset_version is not None else ():
        check_opset(args.opset_version, exporter)
    height, width = shared.parse_shape(args.shape)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    detector = read_config(args.config, args.checkpoint, cfg_options, args.device)
    shared.refuse_of_kind(args, build_parser(), 'lint', detector.family)
    build(detector)
    load_weights(detector)
    reports: list[Report] = []
    with after_weights():
        for report in lint(detector, args, exporters, (height, width)):
            print_report(report, cli.stdout(), args.notes)
            reports.append(report)
    failed = any(report.failed for report in reports)
    if args.json:
        write_json(args.json, dict(failed=failed, reports=[report.to_json() for report in reports]))
    return int(failed)


def lint(
    detector: Detector, args: argparse.Namespace, exporters: Sequence[str], shape: tuple[int, int]
) -> Iterator[Report]:
    """Yield a report of each part, see `lint_parts.parts_of`.

    `exporters` give the severities. `shape` is height and width of an image model's input; 0: the test
    pipeline's.
    """
    from mmdeploy_ext.bench.lint import check
    from mmdeploy_ext.cli.lint_parts import parts_of

    family = detector.family
    options = kind_of(family).observed_options(family, args.postprocess, shape, args.dynamic_export)
    tries_exports = not args.no_export
    for part in parts_of(detector, options, args.input_img):
        part_exporters = part.exporters or exporters
        trials = f', then {" and ".join(part_exporters)}' if tries_exports else ''
        with cli.stderr().status(f'{part.name}: observed run{trials}'):
            report = check(
                part.module,
                part.inputs,
                other_inputs=part.other_inputs,
                input_names=part.input_names,
                dynamic=args.dynamic_export and part.other_inputs is not None,
                exporters=part_exporters,
                opset=args.opset_version,
                try_exports=tries_exports,
                name=part.name,
            )
        yield report


main = cli.program(run, build_parser)
